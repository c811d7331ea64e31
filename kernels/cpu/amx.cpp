// Convolution at chosen positions and linear layers on rows, in bfloat16, for CPUs that multiply tiles of numbers (Intel's AMX).
//
// A tile is 16 rows of 32 numbers. What the rows read is put together as tiles, once for all outputs, of so many rows and taps at a time as
// stay in a cache; 32 rows by 32 outputs are summed in four tiles, which wait in memory from some taps to the next. Weights lie in panels
// of up to 32 outputs, each as (taps, channels / 32) times a tile or two: 16 pairs of channels by 16 outputs. Channels are filled up with
// zeros to whole tiles, at each tap.
// What `kernels/cpu/library.py` calls stands at the end of this file.

#include "product.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

using namespace sige;

namespace {

constexpr int64_t ROWS = 16, CHANNELS = 32, TILE = ROWS * CHANNELS;  // of a tile, and its numbers
constexpr int64_t TILE_BYTES = TILE * sizeof(Bfloat16), ROW_BYTES = CHANNELS * sizeof(Bfloat16), LINE_BYTES = 64;
constexpr int64_t OWN = 1 << 19;      // bytes of tiles that a thread puts together at a time, a share of its own cache
constexpr int64_t SHARED = 1 << 20;   // that all threads put together at a time, and each reads
constexpr int64_t WEIGHTS = 4 << 20;  // bytes of weights that each thread may read; more they share out
constexpr int64_t LEAST = 64;         // rows for each thread without which they share out the weights, too
constexpr int64_t MOST = 256;         // rows at a time where they do: the sums of more would not stay in a cache
static_assert(WIDE == 2 * ROWS && ROWS == LANES);

using Numbers = TaskOf<Bfloat16>;

// Memory for tiles, each in lines of its own; grown and never given back.
class Room {
   public:
    ~Room() { std::free(memory); }

    template <class Number>
    Number* of(int64_t tiles) {
        if (tiles > held) {
            std::free(memory);
            memory = std::aligned_alloc(LINE_BYTES, tiles * TILE_BYTES);
            held = memory ? tiles : 0;
            if (!memory) throw std::bad_alloc();
        }
        return static_cast<Number*>(memory);
    }

   private:
    void* memory = nullptr;
    int64_t held = 0;
};

// Sums in tiles 0 to 3, inputs in 4 and 5, weights in 6 and 7, all of full size.
class Configured {
   public:
    Configured() {
        alignas(LINE_BYTES) uint8_t settings[64] = {1};
        for (int tile = 0; tile < 8; tile++) settings[16 + 2 * tile] = ROW_BYTES, settings[48 + tile] = ROWS;
        _tile_loadconfig(settings);
    }
    ~Configured() { _tile_release(); }
};

inline int64_t steps(const Numbers& task) { return (task.channels + CHANNELS - 1) / CHANNELS; }

// Some taps, [first, last), of some rows, [row, below): what they read, put together as tiles, and where their sums wait, 32 rows by 32
// outputs each.
struct Part {
    int64_t row, below, first, last;
    Bfloat16* tiles;
    float* sums;
};

inline int64_t ceil_of(int64_t number, int64_t unit) { return (number + unit - 1) / unit; }
inline int64_t panels(const Numbers& task) { return ceil_of(task.outputs, WIDE); }
inline int64_t high_tiles(const Numbers& task, const Part& part) { return (part.last - part.first) * steps(task); }  // of 16 rows

// Puts together the tiles of the `block`th 16 rows. What the next ones read is fetched meanwhile.
void gather(const Numbers& task, const Part& part, int64_t block) {
    const int64_t whole = task.channels / CHANNELS, rest = task.channels % CHANNELS * sizeof(Bfloat16);
    const int64_t row = part.row + block * ROWS, next = row + ROWS;
    Bfloat16* tiles = part.tiles + block * high_tiles(task, part) * TILE;
    for (int64_t tap = part.first; tap < part.last; tap++) {
        const Bfloat16* from[ROWS];
        for (int64_t r = 0; r < ROWS; r++) {
            from[r] = row + r < part.below ? input(task, row + r, tap) : task.zeros;
            const Bfloat16* later = next + r < task.count ? input(task, next + r, tap) : task.zeros;
            for (int64_t line = 0; line < task.channels; line += CHANNELS) __builtin_prefetch(later + line, 0, 3);
        }
        for (int64_t step = 0; step < whole; step++, tiles += TILE)
#pragma GCC unroll 16
            for (int64_t r = 0; r < ROWS; r++) std::memcpy(tiles + r * CHANNELS, from[r] + step * CHANNELS, ROW_BYTES);
        if (!rest) continue;
        std::memset(tiles, 0, TILE_BYTES);
        for (int64_t r = 0; r < ROWS; r++) std::memcpy(tiles + r * CHANNELS, from[r] + whole * CHANNELS, rest);
        tiles += TILE;
    }
}

// Adds the products of a part's taps to sums of `high` times 16 rows, from `row` on, and of a panel, `wide` times 16 lanes; after the last
// tap they are carried to their end.
template <int high, int wide>
void block(const Numbers& task, const Part& part, const PanelOf<Bfloat16>& panel, int64_t row, const Bfloat16* tiles, float* sums) {
    constexpr int64_t right = LANES, low = ROWS * WIDE, across = WIDE * sizeof(float);
    const int64_t count = high_tiles(task, part), until = row + high * ROWS < part.below ? row + high * ROWS : part.below;
    const bool ends = part.last == task.taps;
    for (int64_t r = row; ends && r < until; r++) fetch_end(task, r, panel.first, 1);  // a line of two vectors
    if (part.first == 0) {
        _tile_zero(0);
        if constexpr (wide == 2) _tile_zero(1);
        if constexpr (high == 2) _tile_zero(2);
        if constexpr (high == 2 && wide == 2) _tile_zero(3);
    } else {
        _tile_loadd(0, sums, across);
        if constexpr (wide == 2) _tile_loadd(1, sums + right, across);
        if constexpr (high == 2) _tile_loadd(2, sums + low, across);
        if constexpr (high == 2 && wide == 2) _tile_loadd(3, sums + low + right, across);
    }
    const Bfloat16 *below = tiles + count * TILE, *weights = panel.weights + part.first * steps(task) * wide * TILE;
    for (int64_t k = 0; k < count; k++, tiles += TILE, below += TILE, weights += wide * TILE) {
        _tile_loadd(4, tiles, ROW_BYTES);
        _tile_loadd(6, weights, ROW_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (wide == 2) {
            _tile_loadd(7, weights + TILE, ROW_BYTES);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (high == 2) {
            _tile_loadd(5, below, ROW_BYTES);
            _tile_dpbf16ps(2, 5, 6);
        }
        if constexpr (high == 2 && wide == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, across);
    if constexpr (wide == 2) _tile_stored(1, sums + right, across);
    if constexpr (high == 2) _tile_stored(2, sums + low, across);
    if constexpr (high == 2 && wide == 2) _tile_stored(3, sums + low + right, across);
    for (int64_t r = row; ends && r < until; r++, sums += WIDE)
        for (int64_t v = 0; v < wide * LANES; v += LANES) end(task, load(sums + v, LANES), r, panel.first + v, panel.lanes - v);
}

// A part times one panel.
void multiply(const Numbers& task, const Part& part, int64_t number) {
    const int64_t first = number * WIDE, left = task.outputs - first;
    const PanelOf<Bfloat16> panel{task.panels + first * task.taps * steps(task) * CHANNELS, first, left < WIDE ? left : WIDE};
    const bool wide = panel.lanes > LANES;
    const Bfloat16* tiles = part.tiles;
    float* sums = part.sums + number * 2 * ROWS * WIDE;
    for (int64_t row = part.row; row < part.below; row += 2 * ROWS) {
        const bool high = part.below - row > ROWS;
        (high ? wide ? block<2, 2> : block<2, 1> : wide ? block<1, 2> : block<1, 1>)(task, part, panel, row, tiles, sums);
        tiles += 2 * high_tiles(task, part) * TILE, sums += panels(task) * 2 * ROWS * WIDE;
    }
}

// How many taps of `rows` are put together at a time, so that their tiles fill no more than so many bytes.
inline int64_t taps_of(const Numbers& task, int64_t rows, int64_t bytes) {
    const int64_t taps = bytes / (rows * steps(task) * ROW_BYTES);
    return taps < 1 ? 1 : taps > task.taps ? task.taps : ceil_of(task.taps, ceil_of(task.taps, taps));
}

// Memory for the tiles of `taps` of `rows`, and for their sums.
Part room_for(const Numbers& task, int64_t rows, int64_t taps) {
    static thread_local Room tiles, sums;
    const int64_t high = ceil_of(rows, 2 * ROWS);
    const int64_t waiting = high * panels(task) * 2 * ROWS * WIDE * sizeof(float) / TILE_BYTES;
    return {0, 0, 0, 0, tiles.of<Bfloat16>(2 * high * taps * steps(task)), sums.of<float>(waiting)};
}

// Each thread takes some rows at a time.
void convolve_apart(const Numbers& task, int64_t threads) {
    const int64_t most = OWN / (2 * task.taps * steps(task) * TILE_BYTES), share = ceil_of(ceil_of(task.count, 2 * ROWS), threads);
    const int64_t rows = 2 * ROWS * (most < 1 ? 1 : most < share ? most : share), taps = taps_of(task, rows, OWN);
#pragma omp parallel num_threads(threads)
    {
        const Configured configured;
        Part part = room_for(task, rows, taps);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < task.count; row += rows) {
            part.row = row, part.below = row + rows < task.count ? row + rows : task.count;
            for (part.first = 0; part.first < task.taps; part.first = part.last) {
                part.last = part.first + taps < task.taps ? part.first + taps : task.taps;
                for (int64_t i = 0; i < ceil_of(part.below - row, ROWS); i++) gather(task, part, i);
                for (int64_t i = 0; i < panels(task); i++) multiply(task, part, i);
            }
        }
    }
}

// Threads put together what some rows read, then share out the panels.
void convolve_together(const Numbers& task, int64_t threads) {
    const int64_t passes = ceil_of(task.count, MOST), rows = ceil_of(ceil_of(task.count, passes), 2 * ROWS) * 2 * ROWS;
    const int64_t taps = taps_of(task, rows, SHARED);
    Part part = room_for(task, rows, taps);
    for (part.row = 0; part.row < task.count; part.row = part.below) {
        part.below = part.row + rows < task.count ? part.row + rows : task.count;
        for (part.first = 0; part.first < task.taps; part.first = part.last) {
            part.last = part.first + taps < task.taps ? part.first + taps : task.taps;
#pragma omp parallel num_threads(threads)
            {
                const Configured configured;
#pragma omp for schedule(dynamic)
                for (int64_t i = 0; i < ceil_of(part.below - part.row, ROWS); i++) gather(task, part, i);
#pragma omp for schedule(dynamic)
                for (int64_t i = 0; i < panels(task); i++) multiply(task, part, i);
            }
        }
    }
}

}  // namespace

extern "C" {

// Whether the CPU multiplies tiles: 1, or -1 where the system does not let this process do so. 0 where it cannot, see below.
int64_t multiplies_tiles() {
    constexpr long ASK_FOR = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ASK_FOR, TILES) == 0 ? 1 : -1;
}

void conv_rows_bfloat16(const TaskOf<Bfloat16>* task, int64_t threads) {
    const bool light = task->taps * task->channels * task->outputs * (int64_t)sizeof(Bfloat16) <= WEIGHTS;
    (light && task->count >= LEAST * threads ? convolve_apart : convolve_together)(*task, threads);
}
}

#else

extern "C" {

int64_t multiplies_tiles() { return 0; }
void conv_rows_bfloat16(const sige::TaskOf<Bfloat16>*, int64_t) {}
}

#endif
