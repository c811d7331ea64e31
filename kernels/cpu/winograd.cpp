// 3x3 convolution at chosen positions by Winograd's F(2x2, 3x3), in float32: four outputs that are neighbours take 16 products a pair
// of channels, not 36. Of a map that is read enlarged twice, to nearest, seven of the 16 are zero.
//
// A quad is four neighbours of which at least one is wanted. What an unwanted one alone would read need not be there: the sums of the
// others do not hold it, to the bit. Inputs of many quads are transformed, multiplied with the weights' panels 16 (or 9) times, and
// transformed back, where they end as those of `rows.cpp` do.
// S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks,
// CVPR 2016.

#include <vector>

#include "product.h"

using namespace sige;

namespace {

constexpr int64_t TAPS = 9, CENTRE = 4, QUAD = 4;
constexpr int64_t OWN = 1 << 18;     // transformed numbers that stay in a thread's own cache
constexpr int64_t LEAST = 48;        // quads that a thread takes on its own: fewer do not pay for reading all weights
constexpr int64_t SHARED = 1 << 21;  // transformed numbers that stay in the cache that threads share
constexpr int64_t DEPTH_OF_PANEL = 256;  // channels whose weights stay in the first-level cache, over all quads

// Where the taps of the output (row, column) of a quad lie in what the quad reads, `side` rows of `side`.
inline int64_t cell(int64_t side, int64_t output, int64_t tap) {
    const int64_t y = output / 2 + tap / 3, x = output % 2 + tap % 3;
    return side == 4 ? y * side + x : (y + 1) / 2 * side + (x + 1) / 2;
}

// Whether an output with these taps fits into a quad, whose window (side * side) is filled up by what it reads. -2: not known yet.
bool join(const int64_t* taps, int64_t side, int64_t output, int64_t* window) {
    for (int64_t tap = 0; tap < TAPS; tap++) {
        const int64_t known = window[cell(side, output, tap)];
        if (known != -2 && known != taps[tap]) return false;
    }
    if (side == 3) {  // two taps may lie in one cell
        for (int64_t tap = 0; tap < TAPS; tap++)
            for (int64_t other = 0; other < tap; other++)
                if (cell(side, output, tap) == cell(side, output, other) && taps[tap] != taps[other]) return false;
    }
    for (int64_t tap = 0; tap < TAPS; tap++) window[cell(side, output, tap)] = taps[tap];
    return true;
}

// The sums along one axis, in place, of what a quad reads; and of the products, of which two are left.
inline void into(Vector& a, Vector& b, Vector& c, Vector& d) {
    const Vector first = a - c, second = b + c, third = c - b, fourth = b - d;
    a = first, b = second, c = third, d = fourth;
}
inline void into(Vector& a, Vector& b, Vector& c) {
    a = a - b, c = b - c;
}
inline void back(Vector& a, Vector& b, Vector& c, Vector& d) {
    const Vector first = a + b + c, second = b - c - d;
    a = first, b = second;
}
inline void back(Vector& a, Vector& b, Vector& c) {
    const Vector first = a + b, second = b - c;
    a = first, b = second;
}

template <int side>
inline void transform_input(Vector (&d)[side][side]) {
    if constexpr (side == 4) {
        for (int x = 0; x < side; x++) into(d[0][x], d[1][x], d[2][x], d[3][x]);
        for (int y = 0; y < side; y++) into(d[y][0], d[y][1], d[y][2], d[y][3]);
    } else {
        for (int x = 0; x < side; x++) into(d[0][x], d[1][x], d[2][x]);
        for (int y = 0; y < side; y++) into(d[y][0], d[y][1], d[y][2]);
    }
}

template <int side>
inline void transform_output(Vector (&m)[side][side]) {
    if constexpr (side == 4) {
        for (int x = 0; x < side; x++) back(m[0][x], m[1][x], m[2][x], m[3][x]);
        for (int y = 0; y < 2; y++) back(m[y][0], m[y][1], m[y][2], m[y][3]);
    } else {
        for (int x = 0; x < side; x++) back(m[0][x], m[1][x], m[2][x]);
        for (int y = 0; y < 2; y++) back(m[y][0], m[y][1], m[y][2]);
    }
}

// A convolution quad by quad. `windows` (quads, side * side): rows of the source, negative for zeros. `members` (quads, 4): rows of
// the result, -1 for none.
struct Quads {
    const int64_t *windows, *members;
    int64_t count;
};

// `rows` rows of a matrix (., step), times a panel `columns` vectors wide, over `depth` channels; added to what is there unless `fresh`.
template <int rows, int columns>
struct Products {
    static void run(const float* from, int64_t step, int64_t depth, const float* weights, Ahead ahead, bool fresh, float* to, int64_t apart) {
        Vector sums[rows][columns] = {};
        for (int64_t begin = 0, until; begin < depth; begin = until) {
            until = begin + BURST < depth ? begin + BURST : depth;
            for (int64_t line = 0; line < ahead.share; line += LINE) __builtin_prefetch(ahead.floats + line, 0, 2);
            ahead.floats += ahead.share;
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) __builtin_prefetch(from + (r + rows) * step + begin, 0, 3);
            for (int64_t c = begin; c < until; c++) {
                Vector weight[columns];
                for (int v = 0; v < columns; v++) weight[v] = load(weights + v * LANES, LANES);
                weights += columns * LANES;
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++) {
                    const float value = from[r * step + c];
#pragma GCC unroll 2
                    for (int v = 0; v < columns; v++) sums[r][v] += value * weight[v];
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < columns; v++) {
                float* place = to + r * apart + v * LANES;
                store(place, fresh ? sums[r][v] : sums[r][v] + load(place, LANES), LANES);
            }
    }
};

// The numbers of some quads on their way: those that went in, (side * side, count, channels), and their products, (side * side, count,
// outputs in whole vectors). A line more lies between two matrices, or they would meet in the same few lines of a cache.
struct Work {
    int64_t first, count;
    int64_t channels, outputs;
    float *in, *out;

    Work(int64_t side, int64_t first, int64_t count, const Task& task, std::vector<float>& kept)
        : first(first), count(count), channels(task.channels), outputs((task.outputs + LANES - 1) / LANES * LANES) {
        const int64_t floats = side * side * (step() + apart());
        if ((int64_t)kept.size() < floats) kept.resize(floats);
        in = kept.data(), out = in + side * side * step();
    }
    int64_t step() const { return count * channels + LINE; }
    int64_t apart() const { return count * outputs + LINE; }
};

// The transformed inputs of the quads [first, last).
template <int side>
void inputs(const Task& task, const Quads& quads, const Work& work, int64_t first, int64_t last) {
    for (int64_t quad = first; quad < last; quad++) {
        const int64_t* window = quads.windows + (work.first + quad) * side * side;
        const int64_t* next = quad + 1 < work.count ? window + side * side : window;
        const float *from[side * side], *later[side * side];
        for (int i = 0; i < side * side; i++) from[i] = window[i] < 0 ? task.zeros : task.source + window[i] * task.channels;
        for (int i = 0; i < side * side; i++) later[i] = next[i] < 0 ? task.zeros : task.source + next[i] * task.channels;
        for (int64_t c = 0; c < task.channels; c += LANES) {
            const int64_t lanes = task.channels - c;
            Vector d[side][side];
#pragma GCC unroll 16
            for (int i = 0; i < side * side; i++) {
                __builtin_prefetch(later[i] + c, 0, 3);
                d[i / side][i % side] = load(from[i] + c, lanes);
            }
            transform_input(d);
            float* to = work.in + quad * task.channels + c;
#pragma GCC unroll 16
            for (int i = 0; i < side * side; i++) store(to + i * work.step(), d[i / side][i % side], lanes);
        }
    }
}

// Products of matrix `k` with the panel whose outputs begin at `column`. The weights `later` floats after its own are fetched meanwhile.
void products(const Task& task, const Work& work, int64_t k, int64_t column, int64_t matrices, int64_t later) {
    const int64_t left = task.outputs - column, wide = left <= LANES ? LANES : WIDE, channels = work.channels;
    static constexpr auto one = by_height<Products, 1>(HEIGHTS), two = by_height<Products, 2>(HEIGHTS);
    const auto& heights = left <= LANES ? one : two;
    const float* weights = task.panels + (column * matrices + k * wide) * channels;
    const int64_t parts = (channels + DEPTH_OF_PANEL - 1) / DEPTH_OF_PANEL, blocks = (work.count + HIGH - 1) / HIGH;
    for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = channels * part / parts, depth = channels * (part + 1) / parts - begin;
        const int64_t bursts = (depth + BURST - 1) / BURST, share = (BURST * wide / LINE + blocks - 1) / blocks * LINE;
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t row = work.count * i / blocks, below = work.count * (i + 1) / blocks, fetched = i * bursts * share;
            const float* next = weights + (part + 1 < parts ? (begin + depth) * wide : later);
            const Ahead ahead{next + fetched, fetched < depth * wide ? share : 0};
            heights[below - row - 1](work.in + k * work.step() + row * channels + begin, channels, depth, weights + begin * wide, ahead,
                                     part == 0, work.out + k * work.apart() + row * work.outputs + column, work.outputs);
        }
    }
}

// What the products of the quads [first, last) give, and its end.
template <int side>
void outputs(const Task& task, const Quads& quads, const Work& work, int64_t first, int64_t last) {
    constexpr int64_t EARLY = 4;  // quads: remembered maps lie in main memory, and are fetched before they are written or added
    for (int64_t quad = first; quad < last; quad++) {
        const int64_t *members = quads.members + (work.first + quad) * QUAD, *later = members + (quad + EARLY < work.count ? EARLY * QUAD : 0);
        const float* from = work.out + quad * work.outputs;
        for (int64_t v = 0; v < task.outputs; v += LANES) {
            for (int64_t i = 0; i < QUAD; i++) {
                if (later[i] >= 0) fetch_end(task, later[i], v, 1);
            }
            Vector m[side][side];
#pragma GCC unroll 16
            for (int i = 0; i < side * side; i++) m[i / side][i % side] = load(from + i * work.apart() + v, LANES);
            transform_output(m);
            for (int64_t i = 0; i < QUAD; i++)
                if (members[i] >= 0) end(task, m[i / 2][i % 2], members[i], v, task.outputs - v);
        }
    }
}

template <int side>
void convolve(const Task& task, const Quads& quads, int64_t threads) {
    constexpr int64_t matrices = side * side;
    const int64_t panels = (task.outputs + WIDE - 1) / WIDE, floats = matrices * (task.channels + task.outputs);
    const int64_t own = OWN / floats;
    static thread_local std::vector<float> kept;  // grown and never given back
    if (own >= LEAST && quads.count >= LEAST * threads) {
        const int64_t shares = (quads.count + own - 1) / own > threads ? (quads.count + own - 1) / own : threads;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t share = 0; share < shares; share++) {
            const int64_t first = quads.count * share / shares;
            const Work work(side, first, quads.count * (share + 1) / shares - first, task, kept);
            inputs<side>(task, quads, work, 0, work.count);
            for (int64_t panel = 0; panel < panels; panel++)
                for (int64_t k = 0; k < matrices; k++) products(task, work, k, panel * WIDE, matrices, task.channels * WIDE);
            outputs<side>(task, quads, work, 0, work.count);
        }
        return;
    }
    const int64_t passes = (quads.count * floats + SHARED - 1) / SHARED;
    for (int64_t pass = 0; pass < passes; pass++) {
        const int64_t first = quads.count * pass / passes, count = quads.count * (pass + 1) / passes - first;
        const Work work(side, first, count, task, kept);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(dynamic, 4)
            for (int64_t quad = 0; quad < count; quad++) inputs<side>(task, quads, work, quad, quad + 1);
#pragma omp for schedule(dynamic, 2)
            for (int64_t item = 0; item < matrices * panels; item++)
                products(task, work, item / panels, item % panels * WIDE, matrices, matrices * task.channels * WIDE);
#pragma omp for schedule(dynamic, 4)
            for (int64_t quad = 0; quad < count; quad++) outputs<side>(task, quads, work, quad, quad + 1);
        }
    }
}

}  // namespace

extern "C" {

// Puts outputs together into quads. `index` (count, 9): the row that each tap reads, -1 for zeros. `places` (rows of the source): room.
// Fills `members` (., 4) and `windows` (., side * side), which have room for `count` quads. Returns how many there are; 0 where outputs
// do not lie as `side` says.
int64_t quads(const int64_t* index, int64_t count, int64_t side, int64_t rows, int64_t* places, int64_t* members, int64_t* windows) {
    int64_t made = 0;
    std::vector<char> used(count);
    for (int64_t row = 0; row < rows; row++) places[row] = -1;
    for (int64_t output = 0; output < count; output++) {
        const int64_t* taps = index + output * TAPS;
        if (taps[CENTRE] < 0) return 0;
        int64_t role = 0;
        if (side == 3) {  // a quad's four outputs have one centre; which they are, the taps beside it say
            role = (taps[CENTRE - 3] == taps[CENTRE] ? 2 : 0) + (taps[CENTRE - 1] == taps[CENTRE] ? 1 : 0);
            int64_t quad = places[taps[CENTRE]];
            if (quad < 0) {
                quad = places[taps[CENTRE]] = made++;
                for (int64_t i = 0; i < QUAD; i++) members[quad * QUAD + i] = -1;
                for (int64_t i = 0; i < side * side; i++) windows[quad * side * side + i] = -2;
            }
            if (members[quad * QUAD + role] >= 0 || !join(taps, side, role, windows + quad * side * side)) return 0;
            members[quad * QUAD + role] = output;
        } else {
            if (places[taps[CENTRE]] >= 0) return 0;
            places[taps[CENTRE]] = output;
        }
    }
    for (int64_t output = 0; side == 4 && output < count; output++) {
        if (used[output]) continue;
        int64_t *quad = members + made * QUAD, *window = windows + made * side * side;
        for (int64_t i = 0; i < side * side; i++) window[i] = -2;
        const int64_t* taps = index + output * TAPS;
        const int64_t near[QUAD] = {taps[CENTRE], taps[CENTRE + 1], taps[CENTRE + 3], taps[CENTRE + 4]};
        for (int64_t i = 0; i < QUAD; i++) {
            const int64_t other = near[i] < 0 ? -1 : places[near[i]];
            const bool fits = other >= 0 && !used[other] && join(index + other * TAPS, side, i, window);
            quad[i] = fits ? other : -1;
            if (fits) used[other] = 1;
        }
        made++;
    }
    return made;
}

// `task` has no index and no count: what is read and written, the quads say.
void conv_quads(const Task* task, const int64_t* windows, const int64_t* members, int64_t quads, int64_t side, int64_t threads) {
    (side == 4 ? convolve<4> : convolve<3>)(*task, Quads{windows, members, quads}, threads);
}
}
