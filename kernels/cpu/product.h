// A product of rows and weights: what it reads, what becomes of its sums, and the strip of a panel that one thread computes.
// Numbers are float, or bfloat16 where the CPU multiplies tiles of it.

#pragma once

#include <array>
#include <utility>

#include "vectors.h"

namespace sige {

// Rows of a block, two vectors of each: sums in 24 of 32 registers, 12 of 16, 16 of 32.
constexpr int HIGH = LANES == 16 ? 12 : LANES == 8 ? 6 : 8;
constexpr int WIDE = 2 * LANES;               // outputs of a whole panel
constexpr int64_t DEPTH = 1152;               // products that are summed at a time, in whole taps
constexpr int64_t BURST = 16, LINE = 16;      // channels between two looks ahead; floats of a cache line

template <class Number>
struct TaskOf {
    const Number* source;   // (N, channels)
    const int64_t* index;   // (count, taps) rows of the source, -1 for zeros; null: row i reads row i, and taps is 1
    int64_t count, taps, channels;
    const Number* panels;   // as kernels/cpu/panels.py lays them out
    int64_t outputs;
    const Number* bias;     // (outputs,) or null
    const Number* vector;   // (1 or B, outputs) or null
    const int64_t* sample;  // (count,) row of `vector` that each row takes; null: the first
    const Number* residual;  // (., outputs) or null
    const int64_t* residual_rows;  // (count,) row of `residual` that each row takes; null: its own
    const Number* zeros;    // (channels,)
    Number* raw;            // (count, outputs) or null: the sums with all that is added to them
    AfterOf<Number> after;  // what becomes of them besides
    float* partial;         // (count, outputs): where sums over some of the taps wait
};
using Task = TaskOf<float>;

// One panel: its weights, where its outputs begin, and how many of its lanes are outputs.
template <class Number>
struct PanelOf {
    const Number* weights;
    int64_t first, lanes;
};
using Panel = PanelOf<float>;

// What comes next: a block brings it into the cache while it computes, `share` floats every BURST channels.
struct Ahead {
    const float* floats;
    int64_t share;
};

// Where the input lies that a row reads at a tap.
template <class Number>
inline const Number* input(const TaskOf<Number>& task, int64_t row, int64_t tap) {
    const int64_t at = task.index ? task.index[row * task.taps + tap] : row;
    return at < 0 ? task.zeros : task.source + at * task.channels;
}

// Where what is added to a row begins.
template <class Number>
inline const Number* residual(const TaskOf<Number>& task, int64_t row) {
    return task.residual + (task.residual_rows ? task.residual_rows[row] : row) * task.outputs;
}

// Fetches what `end` will read or write of a row, `columns` vectors: remembered maps lie in main memory.
template <class Number>
inline void fetch_end(const TaskOf<Number>& task, int64_t row, int64_t column, int columns) {
    for (int v = 0; task.after.target && v < columns; v++)
        __builtin_prefetch(task.after.target + task.after.positions[row] * task.outputs + column + v * LANES, 1, 3);
    for (int v = 0; task.residual && v < columns; v++) __builtin_prefetch(residual(task, row) + column + v * LANES, 0, 3);
}

// What is added to `lanes` sums of one row, in the order in which the operators one by one would add it, and where they go.
template <class Number>
inline void end(const TaskOf<Number>& task, Vector sum, int64_t row, int64_t column, int64_t lanes) {
    const int64_t place = row * task.outputs + column;
    if (task.bias) sum += load(task.bias + column, lanes);
    sum = rounded<Number>(sum);
    if (task.vector) sum = rounded<Number>(sum + load(task.vector + (task.sample ? task.sample[row] : 0) * task.outputs + column, lanes));
    if (task.residual) sum = rounded<Number>(sum + load(residual(task, row) + column, lanes));
    if (task.raw) store(task.raw + place, sum, lanes);
    if (task.after.second) finish(task.after, sum, row, column, task.outputs, lanes);
}

// A kernel for each number of rows, from 1 to HIGH, of panels `columns` vectors wide: functions `run` of Kernel<rows, columns>.
constexpr std::make_integer_sequence<int, HIGH> HEIGHTS;
template <template <int, int> class Kernel, int columns, int... rows>
constexpr auto by_height(std::integer_sequence<int, rows...>) {
    return std::array{&Kernel<rows + 1, columns>::run...};
}

// Up to HIGH rows of one panel from `row` on, over the taps [tap, last), added to what the taps before gave.
void block(const Task& task, const Panel& panel, Ahead ahead, int64_t rows, int64_t row, int64_t tap, int64_t last);

// The rows [first, last) of one panel: blocks of equal height, as few as can be, some taps at a time. `after` is a panel to come.
void strip(const Task& task, const Panel& panel, const float* after, int64_t first, int64_t last);

}  // namespace sige
