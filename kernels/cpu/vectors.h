// Vectors of floats as wide as the CPU's, in the notation of GCC, read from and written to memory as float or bfloat16, and what the
// kernels do to them alike.

#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // as on ARM
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));

// The upper half of a float.
struct Bfloat16 {
    uint16_t bits;
};

inline Vector load(const float* from, int64_t lanes) {
    if (lanes >= LANES) return *reinterpret_cast<const Vector*>(from);
    Vector values{};
    std::memcpy(&values, from, lanes * sizeof(float));
    return values;
}

inline Vector to_floats(Halves halves) { return (Vector)(__builtin_convertvector(halves, Words) << 16); }

inline Vector load(const Bfloat16* from, int64_t lanes) {
    Halves halves{};
    if (lanes >= LANES)
        halves = *reinterpret_cast<const Halves*>(from);
    else
        std::memcpy(&halves, from, lanes * sizeof(Bfloat16));
    return to_floats(halves);
}

inline void store(float* to, Vector values, int64_t lanes) {
    if (lanes >= LANES)
        *reinterpret_cast<Vector*>(to) = values;
    else
        std::memcpy(to, &values, lanes * sizeof(float));
}

// The nearest bfloat16, of two as near the even one; not a number stays so.
inline Halves to_halves(Vector values) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
    const Words words = (Words)values, none = 0x7fc00000 - Words{};
    return __builtin_convertvector((values == values ? words + 0x7fff + ((words >> 16) & 1) : none) >> 16, Halves);
#endif
}

inline float to_float(float value) { return value; }
inline float to_float(Bfloat16 value) { return load(&value, 1)[0]; }

inline void store(Bfloat16* to, Vector values, int64_t lanes) {
    const Halves halves = to_halves(values);
    if (lanes >= LANES)
        *reinterpret_cast<Halves*>(to) = halves;
    else
        std::memcpy(to, &halves, lanes * sizeof(Bfloat16));
}

// Values as they would be read again, had they been written as `Number`: what operators one by one hand on.
template <class Number>
inline Vector rounded(Vector values) {
    if constexpr (sizeof(Number) == sizeof(float)) return values;
    return to_floats(to_halves(values));
}

// e^x to about the last bit: 2^n * e^r with |r| <= ln(2)/2, e^r by its series. Ends that floats cannot hold are the largest they can.
inline Vector exponential(Vector x) {
    constexpr float LEAST = -87.3f, MOST = 88.3f, ROUND = 12582912.0f;  // added and taken away again, the last rounds to whole numbers
    const Vector least = LEAST - Vector{}, most = MOST - Vector{};
    x = x < least ? least : x;
    x = x > most ? most : x;
    const Vector n = (x * 1.44269504f + ROUND) - ROUND;
    const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vector sum = 1.0f / 5040 - Vector{};
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return sum * (Vector)power;
}

// What follows a product, or stands alone: a norm's scale and shift, an activation, and the exchange with rows of a map.
template <class Number>
struct AfterOf {
    const Number *scale, *shift;  // (1 or samples, channels) or null
    const int64_t* sample;        // (count,) row of scale and shift; null: the first
    int64_t activation;          // place in `sige.kernels.activations.ACTIVATIONS`
    float slope;
    Number* target;              // (., channels) or null
    const int64_t* positions;    // (count,) rows of the target
    Number* second;              // (count, channels): what was in the target, or without one the result; null: nothing of this is wanted
};
using After = AfterOf<float>;

inline Vector activated(Vector x, int64_t activation, float slope) {
    if (activation == 1) return x / (1.0f + exponential(-x));
    if (activation == 2) return x < 0.0f ? Vector{} : x;  // not a number stays so
    if (activation == 3) return x < 0.0f ? x * slope : x;
    return x;
}

// `lanes` values of a row, from a column on, through all of `after`.
template <class Number>
inline void finish(const AfterOf<Number>& after, Vector x, int64_t row, int64_t column, int64_t channels, int64_t lanes) {
    if (after.scale) {
        const int64_t from = (after.sample ? after.sample[row] : 0) * channels + column;
        x = rounded<Number>(x * load(after.scale + from, lanes) + load(after.shift + from, lanes));
    }
    x = activated(x, after.activation, after.slope);
    Number* place = after.second + row * channels + column;
    if (after.target) {
        Number* spot = after.target + after.positions[row] * channels + column;
        store(place, load(spot, lanes), lanes);
        place = spot;
    }
    store(place, x, lanes);
}
