// Convolution at chosen positions and linear layers on rows, in float32, for CPUs whose compiler is GCC's.
//
// No tap is gathered: the product reads each input row where it lies, through the row numbers, and keeps a block of results in
// registers over some taps. Weights lie in panels of up to 32 outputs, each as (taps * channels, width) floats, of which as many taps
// at a time are used as stay in the second-level cache; summing those on their own keeps rounding where the library's own products
// have it.
//
// Threads are those of PyTorch's OpenMP, whose symbols this library finds in the process: it is linked without one of its own.
// What `kernels/cpu/library.py` calls stands at the end of this file.

#include <algorithm>
#include <vector>

#include "vectors.h"

namespace {

// Rows of a block, two vectors of each: sums in 24 of 32 registers, 12 of 16, 16 of 32.
constexpr int HIGH = LANES == 16 ? 12 : LANES == 8 ? 6 : 8;
constexpr int WIDE = 2 * LANES;               // outputs of a whole panel
constexpr int64_t DEPTH = 1152;               // products that are summed at a time, in whole taps
constexpr int64_t BURST = 16, LINE = 16;      // channels between two looks ahead; floats of a cache line
constexpr int64_t CHUNK = 128;                // blocks of rows that one thread takes at a time
constexpr int64_t FOUR = 4;                   // outputs of a narrow convolution that are summed at a time

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
    float* raw;             // (count, outputs) or null: the sums with all that is added to them
    After after;            // what becomes of them besides
    float* partial;         // (count, outputs): where sums over some of the taps wait; one of those that are written at the end
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

// Where the input lies that a row reads at a tap.
inline const float* input(const Task& task, int64_t row, int64_t tap) {
    const int64_t at = task.index ? task.index[row * task.taps + tap] : row;
    return at < 0 ? task.zeros : task.source + at * task.channels;
}

// What is added to `lanes` sums of one row, in the order in which the operators one by one would add it, and where they go.
inline void end(const Task& task, Vector sum, int64_t row, int64_t column, int64_t lanes) {
    const int64_t place = row * task.outputs + column;
    if (task.bias) sum += load(task.bias + column, lanes);
    if (task.vector) sum += load(task.vector + (task.sample ? task.sample[row] : 0) * task.outputs + column, lanes);
    if (task.residual) sum += load(task.residual + place, lanes);
    if (task.raw) store(task.raw + place, sum, lanes);
    if (task.after.second) finish(task.after, sum, row, column, task.outputs, lanes);
}

// `rows` results from `row` on, `columns` vectors wide, over the taps [tap, last), added to what the taps before gave.
template <int rows, int columns>
void block(const Task& task, const Panel& panel, Ahead ahead, int64_t row, int64_t tap, int64_t last) {
    constexpr int wide = columns * LANES;
    Vector sums[rows][columns] = {};
    const float* weights = panel.weights + tap * task.channels * wide;
    // Remembered maps lie in main memory: the rows below are fetched with the first panels, those to be written or added before they are.
    const bool fresh = panel.first < 2 * WIDE && row + 2 * rows <= task.count;
    for (int r = 0; last == task.taps && r < rows; r++) {
        const int64_t column = panel.first, place = (row + r) * task.outputs + column;
        for (int v = 0; task.after.target && v < columns; v++)
            __builtin_prefetch(task.after.target + task.after.positions[row + r] * task.outputs + column + v * LANES, 1, 3);
        for (int v = 0; task.residual && v < columns; v++) __builtin_prefetch(task.residual + place + v * LANES, 0, 3);
        for (int v = 0; tap > 0 && v < columns; v++) __builtin_prefetch(task.partial + place + v * LANES, 1, 3);
    }
    for (int64_t t = tap; t < last; t++) {
        const float *from[rows], *below[rows];
        for (int r = 0; r < rows; r++) from[r] = input(task, row + r, t);
        for (int r = 0; fresh && r < rows; r++) below[r] = input(task, row + rows + r, t);
        for (int64_t begin = 0, until; begin < task.channels; begin = until) {
            until = begin + BURST < task.channels ? begin + BURST : task.channels;
            for (int64_t line = 0; line < ahead.share; line += LINE) __builtin_prefetch(ahead.floats + line, 0, 2);
            ahead.floats += ahead.share;
            if (fresh)
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) __builtin_prefetch(below[r] + begin, 0, 3);
            for (int64_t c = begin; c < until; c++) {
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
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < columns; v++) {
            const int64_t column = panel.first + v * LANES, lanes = panel.lanes - v * LANES;
            float* waiting = task.partial + (row + r) * task.outputs + column;
            const Vector sum = tap > 0 ? sums[r][v] + load(waiting, lanes) : sums[r][v];
            if (last < task.taps)
                store(waiting, sum, lanes);
            else
                end(task, sum, row + r, column, lanes);
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
    bool through;       // whether the image goes through `before` first: a norm's map and an activation
    After before;
    float* out;         // (height, width, outputs)
};

// What one thread keeps of a narrow convolution.
struct Lines {
    std::vector<float> ready;     // HIGH pixels of the image, as they come to the product
    std::vector<float> products;  // of all taps with HIGH pixels and the wide - 1 before them, (., lanes)
    std::vector<float> sums;      // (high, high, width * outputs + FOUR): of the latest lines, for each line of taps, over its taps

    explicit Lines(const Narrow& narrow)
        : ready(HIGH * narrow.channels),
          products((HIGH + narrow.wide - 1) * narrow.lanes + FOUR),
          sums(narrow.high * narrow.high * (narrow.width * narrow.outputs + FOUR)) {}

    float* of(const Narrow& narrow, int64_t y, int64_t dy) {
        return sums.data() + (y % narrow.high * narrow.high + dy) * (narrow.width * narrow.outputs + FOUR);
    }
};

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

// The products with a line's pixels [row, row + rows), behind those of the pixels before. What comes next is fetched meanwhile.
void products(const Narrow& narrow, const float* line, int64_t row, int64_t rows, Lines& lines) {
    const int64_t lanes = narrow.lanes, channels = narrow.channels;
    const float *pixels = line + row * channels, *next = pixels + 2 * HIGH * channels;
    if (narrow.through) {
        After before = narrow.before;
        before.second = lines.ready.data();
        for (int64_t r = 0; r < rows; r++)
            for (int64_t column = 0; column < channels; column += LANES)
                finish(before, load(pixels + r * channels + column, channels - column), r, column, channels, channels - column);
        pixels = lines.ready.data();
    }
    float* out = lines.products.data() + (narrow.wide - 1) * lanes;
    const Task task{pixels, nullptr, rows, 1, channels, narrow.panels, lanes, nullptr, nullptr, nullptr, nullptr, nullptr, out, After{}, out};
    for (int64_t first = 0; first < lanes; first += WIDE) {
        const Panel panel{narrow.panels + first * channels, first, lanes - first < WIDE ? lanes - first : WIDE};
        of_height(rows, panel)(task, panel, Ahead{next, first ? 0 : HIGH * BURST}, 0, 0, 1);
    }
}

// The sums over each line of taps for the pixels that the line `y` of the map takes part in.
void line_sums(const Narrow& narrow, int64_t y, Lines& lines) {
    const int64_t lanes = narrow.lanes, outputs = narrow.outputs, kept = (narrow.wide - 1) * lanes, right = narrow.wide / 2;
    const float* line = narrow.image + y * narrow.width * narrow.channels;
    float* block = lines.products.data();
    std::fill(block, block + kept, 0.0f);  // to the left of the map there is nothing, nor to the right
    for (int64_t row = 0; row < narrow.width + right; row += HIGH) {
        const int64_t until = row + HIGH < narrow.width + right ? row + HIGH : narrow.width + right;
        const int64_t rows = (until < narrow.width ? until : narrow.width) - row;
        if (rows > 0) products(narrow, line, row, rows, lines);
        const int64_t made = rows > 0 ? rows : 0;
        std::fill(block + kept + made * lanes, block + kept + (until - row) * lanes, 0.0f);
        for (int64_t dy = 0; dy < narrow.high; dy++) {
            float* sums = lines.of(narrow, y, dy);
            for (int64_t x = row > right ? row - right : 0; x < until - right; x++) {
                const float* from = block + (x + right - row) * lanes + dy * narrow.wide * outputs;
                for (int64_t o = 0; o < outputs; o += FOUR) {  // lanes that are too many are written over by the next pixel
                    Four sum = *reinterpret_cast<const Four*>(from + o);
                    for (int64_t dx = 1; dx < narrow.wide; dx++) sum += *reinterpret_cast<const Four*>(from + dx * (lanes + outputs) + o);
                    *reinterpret_cast<Four*>(sums + x * outputs + o) = sum;
                }
            }
        }
        std::memmove(block, block + (until - row) * lanes, kept * sizeof(float));
    }
}

// The lines [first, last) of a narrow convolution.
void band(const Narrow& narrow, int64_t first, int64_t last, Lines& lines) {
    const int64_t above = (narrow.high - 1) / 2, floats = narrow.width * narrow.outputs;
    int64_t ready = first > above ? first - above : 0;
    for (int64_t y = first; y < last; y++) {
        const int64_t needed = y - above + narrow.high < narrow.height ? y - above + narrow.high : narrow.height;
        for (; ready < needed; ready++) line_sums(narrow, ready, lines);
        float* out = narrow.out + y * floats;
        for (int64_t i = 0; i < floats; i++) out[i] = narrow.bias ? narrow.bias[i % narrow.outputs] : 0;
        for (int64_t dy = 0; dy < narrow.high; dy++) {
            const int64_t from = y + dy - above;
            if (from < 0 || from >= narrow.height) continue;
            const float* sums = lines.of(narrow, from, dy);
            for (int64_t i = 0; i < floats; i++) out[i] += sums[i];
        }
    }
}

}  // namespace

extern "C" {

int64_t panel_width() { return WIDE; }
int64_t vector_width() { return LANES; }

void conv_rows(const float* source, const int64_t* index, int64_t count, int64_t taps, int64_t channels, const float* panels,
               int64_t outputs, const float* bias, const float* vector, const int64_t* vector_sample, const float* residual,
               const float* scale, const float* shift, const int64_t* sample, int64_t activation, float slope, float* target,
               const int64_t* positions, const float* zeros, float* raw, float* second, int64_t threads) {
    const After after{scale, shift, sample, activation, slope, target, positions, second};
    const Task task{source, index, count, taps, channels, panels, outputs, bias, vector, vector_sample, residual, zeros, raw, after,
                    raw ? raw : second};
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

// Convolution of whole maps (batch, height, width, channels), stride and dilation 1, as many lines and columns out as in; of maps that
// went through `scale` and `shift` (batch, channels), or null, and an activation.
void conv_narrow(const float* image, int64_t batch, int64_t height, int64_t width, int64_t channels, const float* panels, int64_t high,
                 int64_t wide, int64_t outputs, const float* bias, const float* scale, const float* shift, int64_t activation, float slope,
                 float* out, int64_t threads) {
    const int64_t bands = height < 4 * threads ? height : 4 * threads;
    const int64_t used = high * wide * outputs, rest = used % WIDE, lanes = used - rest + (rest > LANES ? WIDE : rest ? LANES : 0);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < batch * bands; item++) {
        const int64_t sample = item / bands, part = item % bands, pixels = sample * height * width;
        const float *factors = scale ? scale + sample * channels : nullptr, *terms = scale ? shift + sample * channels : nullptr;
        const After before{factors, terms, nullptr, activation, slope, nullptr, nullptr, nullptr};
        const Narrow narrow{image + pixels * channels, height, width, channels, high, wide, panels, outputs, lanes, bias,
                            scale || activation, before, out + pixels * outputs};
        Lines lines(narrow);
        band(narrow, height * part / bands, height * (part + 1) / bands, lines);
    }
}
}
