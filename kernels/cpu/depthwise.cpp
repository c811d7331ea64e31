// Depthwise convolution at chosen positions: every channel by itself, some vectors of channels at a time, over some rows that lie
// side by side, so that what they read in common stays in a cache. Weights lie as (taps, channels) floats.
// What `kernels/cpu/library.py` calls stands at the end of this file.

#include "product.h"

using namespace sige;

namespace {

constexpr int64_t ROWS = 32;      // that one thread takes at a time
constexpr int64_t STRIPE = 1024;  // channels of them
constexpr int VECTORS = 4;        // of channels, whose sums are in registers

// `columns` vectors of channels of a row, from a column on, of which the first `left` channels are there.
template <int columns, class Number>
inline void convolve(const TaskOf<Number>& task, int64_t row, int64_t column, int64_t left) {
    fetch_end(task, row, column, columns);
    Vector sums[columns] = {};
    const float* weights = reinterpret_cast<const float*>(task.panels) + column;
    for (int64_t tap = 0; tap < task.taps; tap++) {
        const Number* from = input(task, row, tap) + column;
#pragma GCC unroll 4
        for (int v = 0; v < columns; v++)
            sums[v] += load(from + v * LANES, left - v * LANES) * load(weights + tap * task.channels + v * LANES, left - v * LANES);
    }
    for (int v = 0; v < columns; v++) end(task, sums[v], row, column + v * LANES, left - v * LANES);
}

template <class Number>
void convolve_all(const TaskOf<Number>& task, int64_t threads) {
    constexpr int64_t whole = VECTORS * LANES;
    const int64_t stripes = (task.channels + STRIPE - 1) / STRIPE, chunks = (task.count + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t item = 0; item < chunks * stripes; item++) {
        const int64_t begin = item % stripes * STRIPE, end = begin + STRIPE < task.channels ? begin + STRIPE : task.channels;
        const int64_t first = item / stripes * ROWS, last = first + ROWS < task.count ? first + ROWS : task.count;
        for (int64_t row = first; row < last; row++) {
            int64_t column = begin;
            for (; column + whole <= end; column += whole) convolve<VECTORS>(task, row, column, whole);
            for (; column < end; column += LANES) convolve<1>(task, row, column, end - column);
        }
    }
}

}  // namespace

extern "C" {

void conv_depthwise(const Task* task, int64_t threads) { convolve_all(*task, threads); }
void conv_depthwise_bfloat16(const TaskOf<Bfloat16>* task, int64_t threads) { convolve_all(*task, threads); }
}
