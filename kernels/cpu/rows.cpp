// Convolution at chosen positions and linear layers on rows, in float32, for CPUs whose compiler is GCC's.
//
// No tap is gathered: the product reads each input row where it lies, through the row numbers, and keeps a block of results in
// registers over some taps. Weights lie in panels of up to 32 outputs, each as (taps * channels, width) floats, of which as many taps
// at a time are used as stay in the second-level cache; summing those on their own keeps rounding where the library's own products
// have it.
//
// Threads are those of PyTorch's OpenMP, whose symbols this library finds in the process: it is linked without one of its own.
// What `kernels/cpu/library.py` calls stands at the end of this file.

#include "product.h"

using namespace sige;

namespace {

// `rows` results from `row` on, `columns` vectors wide.
template <int rows, int columns>
struct Sums {
    static void run(const Task& task, const Panel& panel, Ahead ahead, int64_t row, int64_t tap, int64_t last) {
        constexpr int wide = columns * LANES;
        Vector sums[rows][columns] = {};
        const float* weights = panel.weights + tap * task.channels * wide;
        // Remembered maps lie in main memory: the rows below are fetched with the first panels, those to be written or added before they are.
        const bool fresh = panel.first < 2 * WIDE && row + 2 * rows <= task.count;
        for (int r = 0; last == task.taps && r < rows; r++) {
            const int64_t column = panel.first, place = (row + r) * task.outputs + column;
            fetch_end(task, row + r, column, columns);
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
};

}  // namespace

namespace sige {

void block(const Task& task, const Panel& panel, Ahead ahead, int64_t rows, int64_t row, int64_t tap, int64_t last) {
    static constexpr auto narrow = by_height<Sums, 1>(HEIGHTS), wide = by_height<Sums, 2>(HEIGHTS);
    (panel.lanes <= LANES ? narrow : wide)[rows - 1](task, panel, ahead, row, tap, last);
}

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
            block(task, panel, part_ahead, below - row, row, tap, next);
        }
    }
}

}  // namespace sige

constexpr int64_t CHUNK = 128;  // blocks of rows that one thread takes at a time

extern "C" {

int64_t panel_width() { return WIDE; }
int64_t vector_width() { return LANES; }

void conv_rows(const Task* given, int64_t threads) {
    const Task& task = *given;
    const int64_t wide = (task.outputs + WIDE - 1) / WIDE, blocks = (task.count + HIGH - 1) / HIGH, depth = task.taps * task.channels;
    // A few items for each thread, so that none waits long for another, and no more rows in one than keep its input in the cache.
    int64_t chunks = (blocks + CHUNK - 1) / CHUNK;
    if (chunks * wide < 2 * threads) chunks = (2 * threads + wide - 1) / wide;
    if (chunks > blocks) chunks = blocks;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < chunks * wide; item++) {
        const int64_t chunk = item / wide, first = item % wide * WIDE, left = task.outputs - first;
        const Panel panel{task.panels + first * depth, first, left < WIDE ? left : WIDE};
        const int64_t later = item + threads < chunks * wide ? (item + threads) % wide * WIDE : first;
        strip(task, panel, task.panels + later * depth, blocks * chunk / chunks * HIGH,
              chunk + 1 == chunks ? task.count : blocks * (chunk + 1) / chunks * HIGH);
    }
}
}
