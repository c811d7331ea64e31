// Gather and scatter of rows: one thread moves one word. The contract stands in kernels/ops.py.
//
// Row number -1 stands for "no row": gathering it gives zeros, scattering it writes nothing.
//
// To be defined before this text (launch.py does): T_FROM and T_TO, the word read and the word written; CONVERTED, 1 where they are
// numbers of two types, 0 where they are the same bits. Strides and widths count words.

#include <metal_stdlib>
using namespace metal;

#if CONVERTED
#define MOVED(value) T_TO(float(value))
#else
#define MOVED(value) (value)
#endif

// sizes: source's row stride, source's column stride, width.
kernel void gather_rows(
    device const T_FROM* source [[buffer(0)]],
    device const long* index [[buffer(1)]],
    device T_TO* out [[buffer(2)]],
    constant long* sizes [[buffer(3)]],
    uint2 place [[thread_position_in_grid]])
{
    const long row = index[place.y];
    const long target = long(place.y) * sizes[2] + long(place.x);
    if (row < 0) {
        out[target] = T_TO(0);
    } else {
        out[target] = MOVED(source[row * sizes[0] + long(place.x) * sizes[1]]);
    }
}

// sizes: target's row stride, target's column stride, rows' row stride, rows' column stride.
kernel void scatter_rows(
    device T_TO* target [[buffer(0)]],
    device const long* index [[buffer(1)]],
    device const T_FROM* rows [[buffer(2)]],
    constant long* sizes [[buffer(3)]],
    uint2 place [[thread_position_in_grid]])
{
    const long row = index[place.y];
    if (row < 0) {
        return;
    }
    const T_FROM value = rows[long(place.y) * sizes[2] + long(place.x) * sizes[3]];
    target[row * sizes[0] + long(place.x) * sizes[1]] = MOVED(value);
}

// The same, with what was there before going to `old` (rows, width), contiguous.
// sizes: those of scatter_rows, then the width.
kernel void exchange_rows(
    device T_TO* target [[buffer(0)]],
    device const long* index [[buffer(1)]],
    device const T_FROM* rows [[buffer(2)]],
    device T_TO* old [[buffer(3)]],
    constant long* sizes [[buffer(4)]],
    uint2 place [[thread_position_in_grid]])
{
    const long row = index[place.y];
    const long kept = long(place.y) * sizes[4] + long(place.x);
    if (row < 0) {
        old[kept] = T_TO(0);
        return;
    }
    const long spot = row * sizes[0] + long(place.x) * sizes[1];
    const T_FROM value = rows[long(place.y) * sizes[2] + long(place.x) * sizes[3]];
    old[kept] = target[spot];
    target[spot] = MOVED(value);
}
