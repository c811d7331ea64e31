// Affine map and tile moments on rows. The contract stands in kernels/ops.py.
//
// To be defined before this text (launch.py does): T_ROW, T_SCALE and T_SHIFT, the types of the operands' numbers.

#include <metal_stdlib>
using namespace metal;

#define MOMENT_THREADS 64 // normalization.py says the same

// rows * scale + shift; one thread makes one number.
// sizes: width, then the row and the column stride of rows, of scale and of shift; then 1 where `sample` picks the map of each row.
kernel void affine_rows(
    device const T_ROW* rows [[buffer(0)]],
    device const T_SCALE* scale [[buffer(1)]],
    device const T_SHIFT* shift [[buffer(2)]],
    device const long* sample [[buffer(3)]],
    device T_ROW* out [[buffer(4)]],
    constant long* sizes [[buffer(5)]],
    uint2 place [[thread_position_in_grid]])
{
    const long row = long(place.y);
    const long column = long(place.x);
    const long which = sizes[7] != 0 ? sample[row] : 0;
    const float value = float(rows[row * sizes[1] + column * sizes[2]]);
    const float factor = float(scale[which * sizes[3] + column * sizes[4]]);
    const float offset = float(shift[which * sizes[5] + column * sizes[6]]);
    out[row * sizes[0] + column] = T_ROW(value * factor + offset);
}

// Mean and centred sum of squares of each pair of tile and channel group; one threadgroup takes one pair.
// Two passes, mean first: the sum of squares less the square of the sum would lose what a large mean hides.
// sizes: positions of a tile, channels of a group, groups, rows' row stride, rows' column stride.
kernel void tile_moments(
    device const T_ROW* rows [[buffer(0)]],
    device float* means [[buffer(1)]],
    device float* squares [[buffer(2)]],
    constant long* sizes [[buffer(3)]],
    uint pair [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_threadgroup]])
{
    threadgroup float sums[MOMENT_THREADS];
    const int width = int(sizes[1]);
    const int count = int(sizes[0]) * width;
    const long tile = long(pair) / sizes[2];
    const long corner = tile * sizes[0] * sizes[3] + (long(pair) - tile * sizes[2]) * sizes[1] * sizes[4];

    float total = 0.0f;
    for (int v = int(lane); v < count; v += MOMENT_THREADS) {
        total += float(rows[corner + long(v / width) * sizes[3] + long(v % width) * sizes[4]]);
    }
    sums[lane] = total;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint reach = MOMENT_THREADS / 2; reach > 0; reach /= 2) {
        if (lane < reach) {
            sums[lane] += sums[lane + reach];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    const float mean = sums[0] / float(count);
    threadgroup_barrier(mem_flags::mem_threadgroup); // everyone has read the sum before it is overwritten

    total = 0.0f;
    for (int v = int(lane); v < count; v += MOMENT_THREADS) {
        const float centred = float(rows[corner + long(v / width) * sizes[3] + long(v % width) * sizes[4]]) - mean;
        total += centred * centred;
    }
    sums[lane] = total;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint reach = MOMENT_THREADS / 2; reach > 0; reach /= 2) {
        if (lane < reach) {
            sums[lane] += sums[lane + reach];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (lane == 0) {
        means[pair] = mean;
        squares[pair] = sums[0];
    }
}
