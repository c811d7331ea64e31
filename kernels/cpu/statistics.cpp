// Statistics of a group norm, in one pass over the rows of the tiles that an edit touched or over a whole map. What
// `kernels/cpu/library.py` calls.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t WORTH_SHARING = 64 * 1024;  // values above which threads are woken
constexpr int64_t PART = 256;                 // pixels of a whole map that are summed in float

template <class Number>
struct Rows {
    const Number* values;  // (tiles * positions, channels)
    int64_t tiles, positions, channels, groups;
};

// Sums over one tile: of x - centre by group, then of its square. `apart` has room for two sums a channel.
template <class Number>
void tile_sums(const Rows<Number>& rows, int64_t tile, const double* centre, float* sums, std::vector<float>& apart) {
    const int64_t channels = rows.channels, width = channels / rows.groups;
    float *first = apart.data(), *second = first + channels, *middle = second + channels;
    for (int64_t c = 0; c < channels; c++) {
        first[c] = second[c] = 0;
        middle[c] = static_cast<float>(centre[c / width]);
    }
    for (int64_t p = 0; p < rows.positions; p++) {
        const Number* row = rows.values + (tile * rows.positions + p) * channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            const int64_t lanes = channels - c;
            const Vector value = load(row + c, lanes) - load(middle + c, lanes);
            store(first + c, load(first + c, lanes) + value, lanes);
            store(second + c, load(second + c, lanes) + value * value, lanes);
        }
    }
    for (int64_t g = 0; g < rows.groups; g++) {
        double one = 0, two = 0;
        for (int64_t c = g * width; c < (g + 1) * width; c++) one += first[c], two += second[c];
        sums[g] = static_cast<float>(one);
        sums[rows.groups + g] = static_cast<float>(two);
    }
}

template <class Number>
struct Norm {
    int64_t channels, groups;
    const Number *weight, *bias;  // (channels,) or null
};

inline void put(float* place, double value) { *place = static_cast<float>(value); }
inline void put(Bfloat16* place, double value) { store(place, static_cast<float>(value) - Vector{}, 1); }

// A sample's scale and shift (channels,), by the sums over its map of x - centre and of its square (2 * groups,).
template <class Number>
void affine(const double* totals, const double* centre, double map_values, double eps, const Norm<Number>& norm, Number* scale, Number* shift) {
    const int64_t width = norm.channels / norm.groups;
    for (int64_t g = 0; g < norm.groups; g++) {
        const double first = totals[g] / map_values, second = totals[norm.groups + g] / map_values;
        const double variance = second - first * first, mean = first + centre[g];
        const double root = 1 / std::sqrt((variance > 0 ? variance : 0) + eps);
        for (int64_t c = g * width; c < (g + 1) * width; c++) {
            const double factor = norm.weight ? root * to_float(norm.weight[c]) : root;
            put(scale + c, factor);
            put(shift + c, (norm.bias ? to_float(norm.bias[c]) : 0) - mean * factor);
        }
    }
}

template <class Number>
void update(const Number* values, int64_t tiles, int64_t positions, int64_t channels, int64_t groups, Number* sums, const int64_t* tile_index,
            const double* centre, int64_t batch, double* totals, const int64_t* sample, const Number* weight, const Number* bias,
            double map_values, double eps, Number* old, Number* scale, Number* shift, int64_t threads) {
    const Rows<Number> rows{values, tiles, positions, channels, groups};
    const int64_t both = 2 * groups;
    std::vector<float> fresh(tiles * both);
#pragma omp parallel num_threads(threads) if (tiles * positions * channels > WORTH_SHARING)
    {
        std::vector<float> apart(3 * channels);
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; tile++)
            tile_sums(rows, tile, centre + (sample ? sample[tile] : 0) * groups, fresh.data() + tile * both, apart);
    }
    for (int64_t tile = 0; tile < tiles; tile++) {
        Number *kept = sums + tile_index[tile] * both, *before = old + tile * both;
        const float* now = fresh.data() + tile * both;
        double* total = totals + (sample ? sample[tile] : 0) * both;
        for (int64_t i = 0; i < both; i++) {
            before[i] = kept[i];
            put(kept + i, now[i]);
            total[i] += static_cast<double>(to_float(kept[i])) - to_float(before[i]);
        }
    }
    for (int64_t b = 0; b < batch; b++) {
        const Norm<Number> norm{channels, groups, weight, bias};
        affine(totals + b * both, centre + b * groups, map_values, eps, norm, scale + b * channels, shift + b * channels);
    }
}

template <class Number>
void of_maps(const Number* values, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, const Number* weight, const Number* bias,
             double eps, Number* scale, Number* shift, int64_t threads) {
    const int64_t parts = (pixels + PART - 1) / PART, both = 2 * groups, width = channels / groups;
    std::vector<double> centre(groups), totals(both);
    std::vector<float> sums(parts * both);
    for (int64_t b = 0; b < batch; b++) {
        const Number* map = values + b * pixels * channels;
        for (int64_t g = 0; g < groups; g++) {  // the first pixel's mean: near enough to the map's for the sums not to cancel
            double sum = 0;
            for (int64_t c = g * width; c < (g + 1) * width; c++) sum += to_float(map[c]);
            centre[g] = sum / width;
        }
#pragma omp parallel num_threads(threads) if (pixels * channels > WORTH_SHARING)
        {
            std::vector<float> apart(3 * channels);
#pragma omp for schedule(static)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t first = part * PART, count = pixels - first < PART ? pixels - first : PART;
                const Rows<Number> rows{map + first * channels, 1, count, channels, groups};
                tile_sums(rows, 0, centre.data(), sums.data() + part * both, apart);
            }
        }
        std::fill(totals.begin(), totals.end(), 0.0);
        for (int64_t part = 0; part < parts; part++)
            for (int64_t i = 0; i < both; i++) totals[i] += sums[part * both + i];
        const Norm<Number> norm{channels, groups, weight, bias};
        affine(totals.data(), centre.data(), static_cast<double>(pixels * width), eps, norm, scale + b * channels, shift + b * channels);
    }
}

}  // namespace

extern "C" {

// As `sige.kernels.ops.update_statistics_`: `sums` (., 2 * groups) is brought up to date at `tile_index` (tiles,); `old`
// (tiles, 2 * groups), `totals` (batch, 2 * groups), which holds the old ones, `scale` and `shift` (batch, channels) are written.
void update_statistics(const float* values, int64_t tiles, int64_t positions, int64_t channels, int64_t groups, float* sums,
                       const int64_t* tile_index, const double* centre, int64_t batch, double* totals, const int64_t* sample,
                       const float* weight, const float* bias, double map_values, double eps, float* old, float* scale, float* shift,
                       int64_t threads) {
    update(values, tiles, positions, channels, groups, sums, tile_index, centre, batch, totals, sample, weight, bias, map_values, eps,
           old, scale, shift, threads);
}

void update_statistics_bfloat16(const Bfloat16* values, int64_t tiles, int64_t positions, int64_t channels, int64_t groups, Bfloat16* sums,
                                const int64_t* tile_index, const double* centre, int64_t batch, double* totals, const int64_t* sample,
                                const Bfloat16* weight, const Bfloat16* bias, double map_values, double eps, Bfloat16* old,
                                Bfloat16* scale, Bfloat16* shift, int64_t threads) {
    update(values, tiles, positions, channels, groups, sums, tile_index, centre, batch, totals, sample, weight, bias, map_values, eps,
           old, scale, shift, threads);
}

// The same of whole maps `values` (batch, pixels, channels), of which nothing is remembered.
void map_statistics(const float* values, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, const float* weight,
                    const float* bias, double eps, float* scale, float* shift, int64_t threads) {
    of_maps(values, batch, pixels, channels, groups, weight, bias, eps, scale, shift, threads);
}

void map_statistics_bfloat16(const Bfloat16* values, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, const Bfloat16* weight,
                             const Bfloat16* bias, double eps, Bfloat16* scale, Bfloat16* shift, int64_t threads) {
    of_maps(values, batch, pixels, channels, groups, weight, bias, eps, scale, shift, threads);
}
}
