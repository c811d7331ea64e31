// Convolution at chosen positions and linear layers on rows, in float32, for CPUs whose compiler is GCC's.
//
// No tap is gathered: the product reads each input row where it lies, through the row numbers, and keeps a block of results in
// registers over some taps. Weights lie in panels of up to 32 outputs, each as (taps * channels, width) floats, of which as many taps
// at a time are used as stay in the second-level cache; summing those on their own keeps rounding where the library's own products
// have it.
//
// Threads are those of PyTorch's OpenMP, whose symbols this library finds in the process: it is linked without one of its own.
// What `kernels/cpu/library.py` calls stands at the end of this file.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, HIGH = 12;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int LANES = 8, HIGH = 6;  // 12 of 16
#else
constexpr int LANES = 4, HIGH = 8;  // 16 of 32, as on ARM
#endif
constexpr int WIDE = 2 * LANES;               // outputs of a whole panel
constexpr int64_t DEPTH = 1024;               // products that are summed at a time, in whole taps
constexpr int64_t BURST = 16, LINE = 16;      // channels between two looks ahead; floats of a cache line
constexpr int64_t CHUNK = 128;                // blocks of rows that one thread takes at a time

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

struct Task {
    const float* source;    // (N, channels)
    const int64_t* index;   // (count, taps) rows of the source, -1 for zeros; null: row i reads row i, and taps is 1
    int64_t count, taps, channels;
    const float* panels;    // as `panels` in kernels/cpu/product.py lays them out
    int64_t outputs;
    const float* bias;      // (outputs,) or null
    const float* vector;    // (1 or B, outputs) or null
    const int64_t* sample;  // (count,) row of `vector` that each row takes; null: the first
    const float* residual;  // (count, outputs) or null
    const float* zeros;     // (channels,)
    float* out;             // (count, outputs)
};

// One panel: its weights, where its outputs begin, and how many of its lanes are outputs.
struct Panel {
    const float* weights;
    int64_t first, lanes;
};

// What comes next: a block brings it into the cache while it computes, `share` floats every BURST channels.
struct Ahead {
    const float* floats;
    int64_t share;
};

// What is added to the sums of one row, in the order in which the operators one by one would add it.
template <typename Value>
inline Value finished(const Task& task, Value sum, int64_t row, int64_t column) {
    auto at = [](const float* from) { return *reinterpret_cast<const Value*>(from); };
    if (task.bias) sum += at(task.bias + column);
    if (task.vector) sum += at(task.vector + (task.sample ? task.sample[row] : 0) * task.outputs + column);
    if (task.residual) sum += at(task.residual + row * task.outputs + column);
    return sum;
}

// `rows` results from `row` on, `columns` vectors wide, over the taps [tap, last), added to what the taps before gave.
template <int rows, int columns>
void block(const Task& task, const Panel& panel, Ahead ahead, int64_t row, int64_t tap, int64_t last) {
    constexpr int wide = columns * LANES;
    float* out = task.out + row * task.outputs + panel.first;
    Vector sums[rows][columns] = {};
    const float* weights = panel.weights + tap * task.channels * wide;
    for (int64_t t = tap; t < last; t++) {
        const float* from[rows];
        for (int r = 0; r < rows; r++) {
            const int64_t at = task.index ? task.index[(row + r) * task.taps + t] : row + r;
            from[r] = at < 0 ? task.zeros : task.source + at * task.channels;
        }
        for (int64_t begin = 0, end; begin < task.channels; begin = end) {
            end = begin + BURST < task.channels ? begin + BURST : task.channels;
            for (int64_t line = 0; line < ahead.share; line += LINE) __builtin_prefetch(ahead.floats + line, 0, 2);
            ahead.floats += ahead.share;
            for (int64_t c = begin; c < end; c++) {
                Vector weight[columns];
                for (int v = 0; v < columns; v++) weight[v] = *reinterpret_cast<const Vector*>(weights + v * LANES);
                weights += wide;
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    const float value = from[r][c];
#pragma GCC unroll 2
                    for (int v = 0; v < columns; v++) sums[r][v] += value * weight[v];
                }
            }
        }
    }
    const bool whole = panel.lanes == wide, begins = tap == 0, ends = last == task.taps;
    float edge[wide];  // of the last panel, which is filled up
    for (int r = 0; r < rows; r++) {
        float* to = out + r * task.outputs;
        for (int v = 0; v < columns; v++) {
            Vector sum = sums[r][v];
            Vector& place = *reinterpret_cast<Vector*>((whole ? to : edge) + v * LANES);
            if (whole && !begins) sum += place;
            if (whole && ends) sum = finished<Vector>(task, sum, row + r, panel.first + v * LANES);
            place = sum;
        }
        for (int64_t lane = 0; !whole && lane < panel.lanes; lane++) {
            const float sum = begins ? edge[lane] : edge[lane] + to[lane];
            to[lane] = ends ? finished<float>(task, sum, row + r, panel.first + lane) : sum;
        }
    }
}

using Block = void (*)(const Task&, const Panel&, Ahead, int64_t, int64_t, int64_t);

template <int columns, int... rows>
struct Blocks {
    static constexpr Block of[] = {block<rows + 1, columns>...};
};
template <int columns, int count, int... rows>
struct Counted : Counted<columns, count - 1, count - 1, rows...> {};
template <int columns, int... rows>
struct Counted<columns, 0, rows...> : Blocks<columns, rows...> {};

inline Block of_height(int64_t rows, const Panel& panel) {
    return panel.lanes <= LANES ? Counted<1, HIGH>::of[rows - 1] : Counted<2, HIGH>::of[rows - 1];
}

// The rows [first, last) of one panel: blocks of equal height, as few as can be, some taps at a time. `after` is a panel to come.
void strip(const Task& task, const Panel& panel, const float* after, int64_t first, int64_t last) {
    const int64_t wide = panel.lanes <= LANES ? LANES : WIDE;
    const int64_t most = DEPTH > task.channels ? DEPTH / task.channels : 1, parts = (task.taps + most - 1) / most;
    const int64_t blocks = (last - first + HIGH - 1) / HIGH;
    const int64_t share = (BURST * wide / LINE + blocks - 1) / blocks * LINE, bursts = (task.channels + BURST - 1) / BURST;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t tap = task.taps * part / parts, next = task.taps * (part + 1) / parts;
        const int64_t floats = (next - tap) * task.channels * wide, each = (next - tap) * bursts * share;
        const float* ahead = part + 1 < parts ? panel.weights + next * task.channels * wide : after;
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t row = first + (last - first) * i / blocks, below = first + (last - first) * (i + 1) / blocks;
            const Ahead part_ahead{ahead + i * each, i * each < floats ? share : 0};
            of_height(below - row, panel)(task, panel, part_ahead, row, tap, next);
        }
    }
}

// A whole map's convolution to few outputs.
struct Narrow {
    const float* image;  // (height, width, channels)
    int64_t height, width, channels, high, wide;
    const float* panels;  // of all taps' outputs side by side: lane tap * outputs + output
    int64_t outputs, lanes;  // lanes: high * wide * outputs, filled up to whole vectors as the panels are
    const float* bias;  // (outputs,) or null
    float* out;         // (height, width, outputs)
};

// The products of all taps with one line of the map: (width, lanes). What comes next is fetched meanwhile.
void line_products(const Narrow& narrow, int64_t y, float* products) {
    const int64_t lanes = narrow.lanes;
    const Task task{narrow.image + y * narrow.width * narrow.channels, nullptr, narrow.width, 1, narrow.channels,
                    narrow.panels, lanes, nullptr, nullptr, nullptr, nullptr, nullptr, products};
    for (int64_t row = 0; row < narrow.width; row += HIGH) {
        const int64_t rows = narrow.width - row < HIGH ? narrow.width - row : HIGH;
        for (int64_t first = 0; first < lanes; first += WIDE) {
            const Panel panel{narrow.panels + first * narrow.channels, first, lanes - first < WIDE ? lanes - first : WIDE};
            const Ahead ahead{task.source + (row + 2 * HIGH) * narrow.channels, first ? 0 : HIGH * BURST};
            of_height(rows, panel)(task, panel, ahead, row, 0, 1);
        }
    }
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// Output `o` of the pixel (y, x), or four from there on, of which those that are too many are written over by the next pixel.
template <typename Value>
inline void pixel(const Narrow& narrow, const float* lines, int64_t y, int64_t x, int64_t o, float* out) {
    const int64_t above = (narrow.high - 1) / 2, left = (narrow.wide - 1) / 2;
    Value sum{};
    if (narrow.bias) std::memcpy(&sum, narrow.bias + o, sizeof(float) * (sizeof(Value) == sizeof(float) ? 1 : narrow.outputs));
    for (int64_t dy = 0; dy < narrow.high; dy++) {
        const int64_t from = y + dy - above;
        if (from < 0 || from >= narrow.height) continue;
        const float* line = lines + (from % narrow.high * narrow.width + x - left) * narrow.lanes + dy * narrow.wide * narrow.outputs + o;
        for (int64_t dx = 0; dx < narrow.wide; dx++, line += narrow.lanes + narrow.outputs)
            if (x + dx >= left && x + dx - left < narrow.width) sum += *reinterpret_cast<const Value*>(line);
    }
    std::memcpy(out + x * narrow.outputs + o, &sum, sizeof(Value));
}

// The lines [first, last) of a narrow convolution; `lines` holds the products of the `high` latest lines.
void band(const Narrow& narrow, int64_t first, int64_t last, float* lines) {
    const int64_t lanes = narrow.lanes, line_floats = narrow.width * lanes;
    const int64_t above = (narrow.high - 1) / 2;
    const bool fours = narrow.outputs <= 4 && (narrow.high * narrow.wide - 1) * narrow.outputs + 4 <= lanes;
    int64_t ready = first > above ? first - above : 0;
    for (int64_t y = first; y < last; y++) {
        const int64_t needed = y - above + narrow.high < narrow.height ? y - above + narrow.high : narrow.height;
        for (; ready < needed; ready++) line_products(narrow, ready, lines + ready % narrow.high * line_floats);
        float* out = narrow.out + y * narrow.width * narrow.outputs;
        for (int64_t x = 0; x < narrow.width; x++) {
            if (fours && x * narrow.outputs + 4 <= narrow.width * narrow.outputs) {
                pixel<Four>(narrow, lines, y, x, 0, out);
            } else {
                for (int64_t o = 0; o < narrow.outputs; o++) pixel<float>(narrow, lines, y, x, o, out);
            }
        }
    }
}

}  // namespace

extern "C" {

int64_t panel_width() { return WIDE; }
int64_t vector_width() { return LANES; }

void conv_rows(const float* source, const int64_t* index, int64_t count, int64_t taps, int64_t channels, const float* panels,
               int64_t outputs, const float* bias, const float* vector, const int64_t* sample, const float* residual,
               const float* zeros, float* out, int64_t threads) {
    const Task task{source, index, count, taps, channels, panels, outputs, bias, vector, sample, residual, zeros, out};
    const int64_t wide = (outputs + WIDE - 1) / WIDE, blocks = (count + HIGH - 1) / HIGH;
    // A few items for each thread, so that none waits long for another, and no more rows in one than keep its input in the cache.
    int64_t chunks = (blocks + CHUNK - 1) / CHUNK;
    if (chunks * wide < 2 * threads) chunks = (2 * threads + wide - 1) / wide;
    if (chunks > blocks) chunks = blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < chunks * wide; item++) {
        const int64_t chunk = item / wide, first = item % wide * WIDE, left = outputs - first;
        const Panel panel{panels + first * taps * channels, first, left < WIDE ? left : WIDE};
        const int64_t later = item + threads < chunks * wide ? (item + threads) % wide * WIDE : first;
        strip(task, panel, panels + later * taps * channels, blocks * chunk / chunks * HIGH,
              chunk + 1 == chunks ? count : blocks * (chunk + 1) / chunks * HIGH);
    }
}

// Convolution of whole maps (batch, height, width, channels), stride and dilation 1, as many lines and columns out as in.
void conv_narrow(const float* image, int64_t batch, int64_t height, int64_t width, int64_t channels, const float* panels, int64_t high,
                 int64_t wide, int64_t outputs, const float* bias, float* out, int64_t threads) {
    const int64_t bands = height < 4 * threads ? height : 4 * threads;
    const int64_t used = high * wide * outputs, rest = used % WIDE, lanes = used - rest + (rest > LANES ? WIDE : rest ? LANES : 0);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> lines(high * width * lanes);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < batch * bands; item++) {
            const int64_t sample = item / bands, part = item % bands, pixels = sample * height * width;
            const Narrow narrow{image + pixels * channels, height, width, channels, high, wide, panels, outputs, lanes, bias,
                                out + pixels * outputs};
            band(narrow, height * part / bands, height * (part + 1) / bands, lines.data());
        }
    }
}
}
