// Affine map on rows. The contract stands in kernels/ops.py.
//
// To be defined before this text (launch.py does): T_ROW, T_SCALE and T_SHIFT, the types of the operands' numbers.

#include <metal_stdlib>
using namespace metal;

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
