// Metal's 16-bit numbers and short vectors, for a C++ compiler. A number converts to and from float only, rounding to the nearest.
#pragma once
#include <cstdint>
#include <cstring>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
static_assert(sizeof(long) == 8, "Metal's long has 64 bits");

struct uint2 {
    uint x, y;
};

struct uint3 {
    uint x, y, z;
};

struct ulong2 {
    ulong x, y;
    ulong2(ulong x, ulong y) : x(x), y(y) {}
};

namespace shim {

inline uint bits_of(float value)
{
    uint bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(uint bits)
{
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The upper half of `bits`, after rounding to the nearest, ties to even.
inline uint rounded(uint bits, int dropped)
{
    const uint half = 1u << (dropped - 1);
    const uint kept = bits >> dropped;
    const uint rest = bits & ((1u << dropped) - 1);
    return kept + (rest > half || (rest == half && (kept & 1u)) ? 1 : 0);
}

} // namespace shim

// The bits of one type as another of the same size.
template <typename To, typename From> To as_type(From value)
{
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To made;
    std::memcpy(&made, &value, sizeof made);
    return made;
}

struct bfloat {
    uint16_t bits;
    bfloat() = default;
    explicit bfloat(float value)
    {
        const uint all = shim::bits_of(value);
        bits = uint16_t(value != value ? 0x7fc0 : shim::rounded(all, 16));
    }
    explicit operator float() const { return shim::float_of(uint(bits) << 16); }
};

struct half {
    uint16_t bits;
    half() = default;
    explicit half(float value)
    {
        const uint all = shim::bits_of(value);
        const uint sign = all >> 16 & 0x8000u;
        const uint size = all & 0x7fffffffu;
        uint small;
        if (value != value) {
            small = 0x7e00;
        } else if (size >= 0x47800000u) { // 65536 and more
            small = 0x7c00;
        } else if (size >= 0x38800000u) { // normal: the exponent's bias goes from 127 to 15
            small = shim::rounded(size - 0x38000000u, 13);
        } else if (size < 0x33000000u) { // below half of the least number
            small = 0;
        } else { // subnormal: a multiple of 2^-24
            const int exponent = int(size >> 23);
            small = shim::rounded((size & 0x7fffffu) | 0x800000u, 126 - exponent);
        }
        bits = uint16_t(sign | small);
    }
    explicit operator float() const
    {
        const uint sign = uint(bits & 0x8000) << 16;
        const uint exponent = bits >> 10 & 31u;
        const uint mantissa = bits & 1023u;
        if (exponent == 31) {
            return shim::float_of(sign | 0x7f800000u | mantissa << 13);
        }
        if (exponent == 0) {
            const float value = float(mantissa) * 0x1p-24f;
            return sign ? -value : value;
        }
        return shim::float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    }
};
