// Statistics of a group normalisation after an edit. The contract stands in kernels/ops.py.
//
// Metal has no double. Sums are taken about a fixed centre, so that they do not cancel, and added up as pairs of floats, of which the
// second holds what the first one's rounding dropped; the totals are rounded to a float once an edit.
//
// To be defined before this text (launch.py does): T_ROW and T_SUM, the types of the rows' numbers and of the remembered sums.

#include <metal_stdlib>
using namespace metal;

#define STATISTICS_THREADS 64 // normalization.py says the same

// Adds `value` to the sum high + low; what rounding drops goes to low. Exact for numbers of any size and order (Knuth's two-sum).
static void add(thread float& high, thread float& low, float value)
{
    const float sum = high + value;
    const float back = sum - high;
    low += (high - (sum - back)) + (value - back);
    high = sum;
}

// Sums of x - c and (x - c)^2 of each pair of tile and channel group; one threadgroup takes one pair. They replace what is remembered
// of the tile, which goes to `old`; `change` is new less old.
// sizes: positions of a tile, channels of a group, groups, rows' row stride, rows' column stride, row and column stride of sums, then 1
// where `sample` tells each tile's sample.
kernel void exchange_sums(
    device const T_ROW* rows [[buffer(0)]],
    device T_SUM* sums [[buffer(1)]],
    device const long* tile_index [[buffer(2)]],
    device const float* centre [[buffer(3)]],
    device const long* sample [[buffer(4)]],
    device T_SUM* old [[buffer(5)]],
    device float* change [[buffer(6)]],
    constant long* sizes [[buffer(7)]],
    uint pair [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_threadgroup]])
{
    threadgroup float firsts[STATISTICS_THREADS];
    threadgroup float seconds[STATISTICS_THREADS];
    const int width = int(sizes[1]);
    const int count = int(sizes[0]) * width;
    const long groups = sizes[2];
    const long tile = long(pair) / groups;
    const long group = long(pair) - tile * groups;
    const long corner = tile * sizes[0] * sizes[3] + group * sizes[1] * sizes[4];
    const float middle = centre[(sizes[7] != 0 ? sample[tile] : 0) * groups + group];

    float first = 0.0f;
    float second = 0.0f;
    for (int v = int(lane); v < count; v += STATISTICS_THREADS) {
        const float apart = float(rows[corner + long(v / width) * sizes[3] + long(v % width) * sizes[4]]) - middle;
        first += apart;
        second += apart * apart;
    }
    firsts[lane] = first;
    seconds[lane] = second;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint reach = STATISTICS_THREADS / 2; reach > 0; reach /= 2) {
        if (lane < reach) {
            firsts[lane] += firsts[lane + reach];
            seconds[lane] += seconds[lane + reach];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (lane < 2) { // one number each
        const T_SUM sum = T_SUM(lane == 0 ? firsts[0] : seconds[0]);
        const long place = tile_index[tile] * sizes[5] + (group + long(lane) * groups) * sizes[6];
        const long kept = tile * 2 * groups + group + long(lane) * groups;
        old[kept] = sums[place];
        change[kept] = float(sum) - float(sums[place]);
        sums[place] = sum;
    }
}

// Totals of each pair of sample and channel group after the edit, and the scale and shift of its channels; one threadgroup takes one
// pair.
// sizes: tiles, channels of a group, groups, 1 where `sample` tells each tile's sample, values of a group in a map, the bits of the
// float that is added to the variance, 1 where there is a weight, 1 where there is a bias.
kernel void merge_statistics(
    device const float* change [[buffer(0)]],
    device const float* centre [[buffer(1)]],
    device const float* totals [[buffer(2)]],
    device const long* sample [[buffer(3)]],
    device const float* weight [[buffer(4)]],
    device const float* bias [[buffer(5)]],
    device float* after [[buffer(6)]],
    device T_ROW* scale [[buffer(7)]],
    device T_ROW* shift [[buffer(8)]],
    constant long* sizes [[buffer(9)]],
    uint pair [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_threadgroup]])
{
    threadgroup float highs[2 * STATISTICS_THREADS];
    threadgroup float lows[2 * STATISTICS_THREADS];
    const long width = sizes[1];
    const long groups = sizes[2];
    const long which = long(pair) / groups;
    const long group = long(pair) - which * groups;
    const long place = which * 2 * groups + group;

    for (uint part = 0; part < 2; part++) { // first sums, then second ones
        float high = lane == 0 ? totals[place + long(part) * groups] : 0.0f;
        float low = 0.0f;
        for (long tile = long(lane); tile < sizes[0]; tile += STATISTICS_THREADS) {
            if (sizes[3] == 0 || sample[tile] == which) {
                add(high, low, change[tile * 2 * groups + group + long(part) * groups]);
            }
        }
        highs[part * STATISTICS_THREADS + lane] = high;
        lows[part * STATISTICS_THREADS + lane] = low;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint reach = STATISTICS_THREADS / 2; reach > 0; reach /= 2) {
        if (lane < reach) {
            for (uint part = 0; part < 2; part++) {
                const uint mine = part * STATISTICS_THREADS + lane;
                float high = highs[mine];
                float low = lows[mine] + lows[mine + reach];
                add(high, low, highs[mine + reach]);
                highs[mine] = high;
                lows[mine] = low;
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    const float first = highs[0] + lows[0];
    const float second = highs[STATISTICS_THREADS] + lows[STATISTICS_THREADS];
    if (lane == 0) {
        after[place] = first;
        after[place + groups] = second;
    }
    const float values = float(sizes[4]);
    const float offset = first / values;
    const float mean = centre[pair] + offset;
    const float variance = max(second / values - offset * offset, 0.0f);
    const float rstd = 1.0f / sqrt(variance + as_type<float>(int(sizes[5])));
    for (long v = long(lane); v < width; v += STATISTICS_THREADS) {
        const long channel = group * width + v;
        const float factor = sizes[6] != 0 ? rstd * weight[channel] : rstd;
        scale[which * groups * width + channel] = T_ROW(factor);
        shift[which * groups * width + channel] = T_ROW((sizes[7] != 0 ? bias[channel] : 0.0f) - mean * factor);
    }
}
