// Convolution at chosen positions, and the linear layer, as one matrix product. The contract stands in kernels/ops.py.
//
// Rows of the product are output positions; its depth runs over taps and, within a tap, over the channels of a group; its columns are
// outputs. The gathered matrix is never in memory: a threadgroup brings in, piece by piece, what its tile needs.
//
// To be defined before this text (launch.py does): T_SOURCE, T_WEIGHT, T_BIAS, T_OUT, the types of the operands' numbers, and T_FACTOR, the type in
// which two of them are multiplied. Sums are float.

#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// convolution.py says the same.
#define TILE_ROWS 32
#define TILE_OUTPUTS 64
#define TILE_DEPTH 32
#define TILE_PITCH 40 // a line of a tile in threadgroup memory: its depth and 8 more, so that lines do not start on one bank
#define PRODUCT_THREADS 128 // four simdgroups, two by two, of 16 rows and 32 outputs each

// What comes in, and, once all of it is multiplied, what goes out: in the same memory.
union ProductTiles {
    struct {
        T_FACTOR rows[TILE_ROWS * TILE_PITCH];
        T_FACTOR weights[TILE_OUTPUTS * TILE_PITCH];
    } in;
    float out[TILE_ROWS * TILE_OUTPUTS];
};

// `weight` is (groups*outputs, depth), contiguous. The depth is cut in `splits` shares where there are too few tiles to keep the GPU
// busy: then each share's sums go to `partial` (splits, positions, groups*outputs), and `sum_splits` makes the result.
// sizes: positions, depth, channels of a group, outputs of a group, source's row stride, source's column stride, taps (0: no `index`,
// position m reads row m), splits, depth of a split (whole tiles), 1 where there is a bias, groups.
kernel void rows_product(
    device const T_SOURCE* source [[buffer(0)]],
    device const long* index [[buffer(1)]],
    device const T_WEIGHT* weight [[buffer(2)]],
    device const T_BIAS* bias [[buffer(3)]],
    device T_OUT* out [[buffer(4)]],
    device float* partial [[buffer(5)]],
    constant long* sizes [[buffer(6)]],
    uint3 tile [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_threadgroup]],
    uint squad [[simdgroup_index_in_threadgroup]])
{
    threadgroup ProductTiles tiles;
    const int positions = int(sizes[0]);
    const int depth = int(sizes[1]);
    const int channels = int(sizes[2]);
    const int outputs = int(sizes[3]);
    const int taps = int(sizes[6]);
    const int splits = int(sizes[7]);
    const int share = int(sizes[8]);
    const int group = int(tile.z) / splits;
    const int split = int(tile.z) % splits;
    const int first_row = int(tile.y) * TILE_ROWS;
    const int first_output = int(tile.x) * TILE_OUTPUTS;
    const int last = min(depth, (split + 1) * share);
    const uint squad_row = squad / 2 * 16;
    const uint squad_output = squad % 2 * 32;

    simdgroup_matrix<float, 8, 8> sums[2][4];
    // Unrolled here and below, so that the sums stay in registers.
#pragma unroll
    for (uint i = 0; i < 2; ++i) {
#pragma unroll
        for (uint j = 0; j < 4; ++j) {
            sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        }
    }

    for (int start = split * share; start < last; start += TILE_DEPTH) {
        // The lanes of a simdgroup bring in neighbouring places of the depth, of one line after another.
        const int column = int(lane % TILE_DEPTH);
        const int place = start + column;
        const int tap = place / channels;
        const long channel = long(group) * channels + (place - tap * channels);
        for (int line = int(lane / TILE_DEPTH); line < TILE_ROWS; line += PRODUCT_THREADS / TILE_DEPTH) {
            const long position = first_row + line;
            long row = -1;
            if (position < positions && place < last) {
                row = taps == 0 ? position : index[position * taps + tap];
            }
            T_FACTOR value = T_FACTOR(0.0f);
            if (row >= 0) {
                value = T_FACTOR(source[row * sizes[4] + channel * sizes[5]]);
            }
            tiles.in.rows[line * TILE_PITCH + column] = value;
        }
        for (int line = int(lane / TILE_DEPTH); line < TILE_OUTPUTS; line += PRODUCT_THREADS / TILE_DEPTH) {
            T_FACTOR value = T_FACTOR(0.0f);
            if (first_output + line < outputs && place < last) {
                value = T_FACTOR(weight[(long(group) * outputs + first_output + line) * depth + place]);
            }
            tiles.in.weights[line * TILE_PITCH + column] = value;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
        for (uint step = 0; step < TILE_DEPTH; step += 8) {
            simdgroup_matrix<T_FACTOR, 8, 8> left[2];
            simdgroup_matrix<T_FACTOR, 8, 8> right[4];
#pragma unroll
            for (uint i = 0; i < 2; ++i) {
                simdgroup_load(left[i], tiles.in.rows + (squad_row + i * 8) * TILE_PITCH + step, TILE_PITCH);
            }
#pragma unroll
            for (uint j = 0; j < 4; ++j) {
                simdgroup_load(right[j], tiles.in.weights + (squad_output + j * 8) * TILE_PITCH + step, TILE_PITCH, ulong2(0, 0), true);
            }
#pragma unroll
            for (uint i = 0; i < 2; ++i) {
#pragma unroll
                for (uint j = 0; j < 4; ++j) {
                    simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

#pragma unroll
    for (uint i = 0; i < 2; ++i) {
#pragma unroll
        for (uint j = 0; j < 4; ++j) {
            simdgroup_store(sums[i][j], tiles.out + (squad_row + i * 8) * TILE_OUTPUTS + squad_output + j * 8, TILE_OUTPUTS);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const long width = sizes[10] * outputs;
    for (int element = int(lane); element < TILE_ROWS * TILE_OUTPUTS; element += PRODUCT_THREADS) {
        const int position = first_row + element / TILE_OUTPUTS;
        const int output = first_output + element % TILE_OUTPUTS;
        if (position < positions && output < outputs) {
            const long column = long(group) * outputs + output;
            if (splits > 1) {
                partial[(long(split) * positions + position) * width + column] = tiles.out[element];
            } else {
                const float offset = sizes[9] != 0 ? float(bias[column]) : 0.0f;
                out[long(position) * width + column] = T_OUT(tiles.out[element] + offset);
            }
        }
    }
}

// The same product where a group has few channels, as in a depthwise convolution: tiles would be mostly empty, so one thread makes one
// number. sizes: positions, depth, channels of a group, outputs of a group, source's row stride, source's column stride, taps, 1 where
// there is a bias, groups.
kernel void rows_product_of_few(
    device const T_SOURCE* source [[buffer(0)]],
    device const long* index [[buffer(1)]],
    device const T_WEIGHT* weight [[buffer(2)]],
    device const T_BIAS* bias [[buffer(3)]],
    device T_OUT* out [[buffer(4)]],
    constant long* sizes [[buffer(5)]],
    uint2 place [[thread_position_in_grid]])
{
    const long position = long(place.y);
    const long output = long(place.x);
    const int taps = int(sizes[6]);
    const int channels = int(sizes[2]);
    const long channel = long(int(place.x) / int(sizes[3])) * channels;
    float total = sizes[7] != 0 ? float(bias[output]) : 0.0f;
    for (int tap = 0; tap < taps; ++tap) {
        const long row = index[position * taps + tap];
        if (row >= 0) {
            for (int c = 0; c < channels; ++c) {
                const float value = float(source[row * sizes[4] + (channel + c) * sizes[5]]);
                total += value * float(weight[output * sizes[1] + tap * channels + c]);
            }
        }
    }
    out[position * sizes[8] * sizes[3] + output] = T_OUT(total);
}

// The sum of the splits' shares, plus bias; one thread makes one number.
// sizes: splits, positions, width, 1 where there is a bias.
kernel void sum_splits(
    device const float* partial [[buffer(0)]],
    device const T_BIAS* bias [[buffer(1)]],
    device T_OUT* out [[buffer(2)]],
    constant long* sizes [[buffer(3)]],
    uint2 place [[thread_position_in_grid]])
{
    const long target = long(place.y) * sizes[2] + long(place.x);
    float total = sizes[3] != 0 ? float(bias[place.x]) : 0.0f;
    for (long split = 0; split < sizes[0]; ++split) {
        total += partial[split * sizes[1] * sizes[2] + target];
    }
    out[target] = T_OUT(total);
}
