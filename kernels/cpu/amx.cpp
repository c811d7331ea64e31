// Convolution at chosen positions and linear layers on rows, in bfloat16, for CPUs that multiply tiles of numbers (Intel's AMX).
//
// A tile is 16 rows of 32 numbers. What the rows read is put together as tiles, once for all outputs, of as many rows at a time as stay in
// a cache; 32 rows by 32 outputs are summed in four tiles. Weights lie in panels of up to 32 outputs, each as (taps, channels / 32) times
// a tile or two: 16 pairs of channels by 16 outputs. Channels are filled up with zeros to whole tiles, at each tap.
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
constexpr int64_t OWN = 1 << 19;     // bytes of tiles that a thread puts together at a time, a share of its own cache
constexpr int64_t SHARED = 8 << 20;  // and in the cache that threads share
constexpr int64_t LEAST = 64;        // rows that a thread takes on its own: fewer do not pay for reading all weights
static_assert(WIDE == 2 * ROWS && ROWS == LANES);

using Numbers = TaskOf<Bfloat16>;

// Memory for tiles, each in lines of its own; grown and never given back.
class Room {
   public:
    ~Room() { std::free(memory); }

    Bfloat16* of(int64_t tiles) {
        if (tiles > held) {
            std::free(memory);
            memory = std::aligned_alloc(LINE_BYTES, tiles * TILE_BYTES);
            held = memory ? tiles : 0;
            if (!memory) throw std::bad_alloc();
        }
        return static_cast<Bfloat16*>(memory);
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
inline int64_t depth(const Numbers& task) { return task.taps * steps(task); }  // tiles that 16 rows read

// Puts what the rows [first, first + 16) read, of those before `last`, together as tiles.
void gather(const Numbers& task, int64_t first, int64_t last, Bfloat16* tiles) {
    const int64_t whole = task.channels / CHANNELS, rest = task.channels % CHANNELS * sizeof(Bfloat16);
    for (int64_t tap = 0; tap < task.taps; tap++) {
        const Bfloat16* from[ROWS];
        for (int64_t r = 0; r < ROWS; r++) {
            from[r] = first + r < last ? input(task, first + r, tap) : task.zeros;
            const Bfloat16* below = first + ROWS + r < last ? input(task, first + ROWS + r, tap) : task.zeros;
            for (int64_t line = 0; line < task.channels; line += CHANNELS) __builtin_prefetch(below + line, 0, 3);
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

// Sums of `high` times 16 rows, from `row` on, and of one panel, `wide` times 16 lanes; of the rows before `last` they are carried to their end.
template <int high, int wide>
void block(const Numbers& task, const Bfloat16* tiles, const PanelOf<Bfloat16>& panel, int64_t row, int64_t last) {
    const int64_t count = depth(task), until = row + high * ROWS < last ? row + high * ROWS : last;
    for (int64_t r = row; r < until; r++) fetch_end(task, r, panel.first, 1);  // a line of two vectors
    _tile_zero(0);
    if constexpr (wide == 2) _tile_zero(1);
    if constexpr (high == 2) _tile_zero(2);
    if constexpr (high == 2 && wide == 2) _tile_zero(3);
    const Bfloat16 *below = tiles + count * TILE, *weights = panel.weights;
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
    alignas(LINE_BYTES) float sums[high * ROWS][wide * LANES];
    _tile_stored(0, sums[0], sizeof(sums[0]));
    if constexpr (wide == 2) _tile_stored(1, sums[0] + LANES, sizeof(sums[0]));
    if constexpr (high == 2) _tile_stored(2, sums[ROWS], sizeof(sums[0]));
    if constexpr (high == 2 && wide == 2) _tile_stored(3, sums[ROWS] + LANES, sizeof(sums[0]));
    for (int64_t r = row; r < until; r++)
        for (int64_t v = 0; v < wide * LANES; v += LANES) end(task, load(sums[r - row] + v, LANES), r, panel.first + v, panel.lanes - v);
}

// The rows [first, last), whose tiles are put together, times the panel whose outputs begin at `column`.
void strip(const Numbers& task, const Bfloat16* tiles, int64_t column, int64_t first, int64_t last) {
    const int64_t left = task.outputs - column;
    const PanelOf<Bfloat16> panel{task.panels + column * depth(task) * CHANNELS, column, left < WIDE ? left : WIDE};
    const bool wide = panel.lanes > LANES;
    for (int64_t row = first; row < last; row += 2 * ROWS, tiles += 2 * depth(task) * TILE) {
        const bool high = last - row > ROWS;
        (high ? wide ? block<2, 2> : block<2, 1> : wide ? block<1, 2> : block<1, 1>)(task, tiles, panel, row, last);
    }
}

// How many pairs of tiles high `rows` are.
inline int64_t pairs(int64_t rows) { return (rows + 2 * ROWS - 1) / (2 * ROWS); }

// Each thread puts together what its rows read.
void convolve_apart(const Numbers& task, int64_t threads) {
    const int64_t all = pairs(task.count), most = OWN / (2 * depth(task) * TILE_BYTES);
    int64_t shares = most ? (all + most - 1) / most : all;
    if (shares < threads) shares = threads;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Room room;
        const Configured configured;
#pragma omp for schedule(dynamic)
        for (int64_t share = 0; share < shares; share++) {
            const int64_t first = all * share / shares * 2 * ROWS, end = all * (share + 1) / shares * 2 * ROWS;
            const int64_t last = end < task.count ? end : task.count;
            Bfloat16* tiles = room.of((end - first) / ROWS * depth(task));
            for (int64_t row = first; row < last; row += ROWS) gather(task, row, last, tiles + (row - first) / ROWS * depth(task) * TILE);
            for (int64_t column = 0; column < task.outputs; column += WIDE) strip(task, tiles, column, first, last);
        }
    }
}

// Threads put together what all rows read, then share out the panels.
void convolve_together(const Numbers& task, int64_t threads) {
    static thread_local Room room;
    const int64_t panels = (task.outputs + WIDE - 1) / WIDE, all = pairs(task.count);
    const int64_t passes = (all * 2 * depth(task) * TILE_BYTES + SHARED - 1) / SHARED;
    for (int64_t pass = 0; pass < passes; pass++) {
        const int64_t first = all * pass / passes * 2 * ROWS, end = all * (pass + 1) / passes * 2 * ROWS;
        const int64_t last = end < task.count ? end : task.count, blocks = (last - first + ROWS - 1) / ROWS;
        Bfloat16* tiles = room.of((end - first) / ROWS * depth(task));
#pragma omp parallel num_threads(threads)
        {
            const Configured configured;
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < blocks; i++) gather(task, first + i * ROWS, last, tiles + i * depth(task) * TILE);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < panels; i++) strip(task, tiles, i * WIDE, first, last);
        }
    }
}

}  // namespace

extern "C" {

// Whether the CPU multiplies tiles and the system lets this process do so.
int64_t multiplies_tiles() {
    constexpr long ASK_FOR = 0x1023, TILES = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ASK_FOR, TILES) == 0;
}

void conv_rows_bfloat16(const TaskOf<Bfloat16>* task, int64_t threads) {
    (task->count >= LEAST * threads ? convolve_apart : convolve_together)(*task, threads);
}
}

#else

extern "C" {

int64_t multiplies_tiles() { return 0; }
void conv_rows_bfloat16(const sige::TaskOf<Bfloat16>*, int64_t) {}
}

#endif
