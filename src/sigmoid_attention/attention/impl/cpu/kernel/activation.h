// The sigmoid, its exponential and tanh, accurate in relative terms for all negative logits.
//
// sigmoid(u) = 1 / (1 + exp(-u)) has no cancellation. 0.5 (1 + tanh(u / 2)) would lose log10(n)
// digits of a weight near 1 / n.
#pragma once
#include "vector.h"

// Logits are clamped to this. Beyond it a float's sigmoid is 1, or below 2e-35: negligible, but
// large enough that its products are not subnormal, which some processors handle slowly.
constexpr float FARTHEST_LOGIT = 80.0f;
constexpr float LOG2_E = 1.44269504f;
constexpr float LN2 = 0.693147182f;
// log 2 in two parts, the first of few bits, so that n times it is exact.
constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;

static inline Vector nearest_integer(Vector v) {
#if defined(__AVX512F__)
    return (Vector)_mm512_roundscale_ps((__m512)v, 8);
#elif defined(__AVX2__)
    return (Vector)_mm256_round_ps((__m256)v, 8);
#else
    const Vector shift = broadcast(12582912.0f);  // 1.5 * 2^23 leaves no bits for a fraction
    Vector shifted = v + shift;
    __asm__("" : "+m"(shifted));  // keeps the compiler from cancelling the two
    return shifted - shift;
#endif
}

// v * 2^n for an integer n in a float.
static inline Vector times_power_of_two(Vector v, Vector n) {
#if defined(__AVX512F__)
    return (Vector)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
    Integers exponent = __builtin_convertvector(n, Integers);
    return v * as_floats((exponent + 127) << 23);
#endif
}

// The coefficients of an activation, stored in each tile. As constants they would be hoisted out of
// the loops into registers, which the sums of products need.
struct Coefficients {
    float farthest, one, to_power, back;
    float p0, p1, p2, p3, p4, p5, p6;
};

constexpr Coefficients EXACT = {
    FARTHEST_LOGIT, 1.0f,         -LOG2_E,      LN2,           1.0f,        -1.0f,
    0.4999999f,     -0.1666642f,  0.041668225f, -0.008374816f, 0.001383684f,
};
constexpr Coefficients ROUGH = {
    FARTHEST_LOGIT * LOG2_E, 1.0f,         1.0f,          0.0f, 0.999928057f,
    0.693260968f,            0.242611125f, 0.0551716723f, 0.0f, 0.0f, 0.0f,
};

// exp(-u) for |u| <= FARTHEST_LOGIT, to 6e-8, relatively; a NaN stays a NaN.
static inline Vector inverse_exponential(Vector u, const Coefficients &k) {
    Vector n = nearest_integer(u * k.to_power);
    // The remainder is small, and must not have the rounding error of the product.
#if defined(__AVX512F__)
    Vector f = (Vector)_mm512_fmadd_ps((__m512)n, _mm512_set1_ps(k.back), (__m512)u);
#elif defined(__FMA__)
    Vector f = (Vector)_mm256_fmadd_ps((__m256)n, _mm256_set1_ps(k.back), (__m256)u);
#else
    Vector f = n * LN2_HIGH + u;
    f = n * LN2_LOW + f;
#endif
    Vector p = f * k.p6 + k.p5;
    p = p * f + k.p4;
    p = p * f + k.p3;
    p = p * f + k.p2;
    p = p * f + k.p1;
    p = p * f + k.p0;
    return times_power_of_two(p, n);
}

// 2^t with an error of 1e-4, a twentieth of the rounding error of bfloat16.
static inline Vector coarse_power_of_two(Vector t, const Coefficients &k) {
    Vector n = nearest_integer(t);
    Vector f = t - n;
    Vector p = f * k.p3 + k.p2;
    p = p * f + k.p1;
    p = p * f + k.p0;
    return times_power_of_two(p, n);
}

static inline Vector reciprocal(Vector v, float one) {
#if defined(__AVX512F__)
    Vector r = (Vector)_mm512_rcp14_ps((__m512)v);
    return r + r * (one - v * r);
#else
    return one / v;
#endif
}

static inline Vector coarse_reciprocal(Vector v) {
#if defined(__AVX512F__)
    return (Vector)_mm512_rcp14_ps((__m512)v);
#else
    return 1.0f / v;
#endif
}

// The unit of the logits of a coarse sigmoid, which uses a power of two instead of exp.
template <bool COARSE> constexpr float LOGIT_UNIT = COARSE ? -LOG2_E : 1.0f;

// The sigmoid, and in `odds` exp(-u) = (1 - sigmoid) / sigmoid, which keeps the digits of 1 -
// sigmoid where the sigmoid is near 1.
template <bool COARSE> static inline Vector sigmoid(Vector u, const Coefficients &k, Vector &odds) {
    Vector x = at_least(at_most(u, k.farthest), -k.farthest);
    odds = COARSE ? coarse_power_of_two(x, k) : inverse_exponential(x, k);
    Vector whole = k.one + odds;
    return COARSE ? coarse_reciprocal(whole) : reciprocal(whole, k.one);
}

// tanh, by a polynomial near 0, where the exponential form would lose digits.
static inline Vector hyperbolic_tangent(Vector y) {
    Vector a = absolute(y);
    Vector square = a * a;
    Vector p = square * 0.0150509449f - 0.0518218651f;
    p = p * square + 0.133045256f;
    p = p * square - 0.333319545f;
    p = p * square + 0.999999881f;
    Vector near = a * p;
    Vector odds = inverse_exponential(at_least(-2.0f * a, -40.0f), EXACT);
    Vector far = 1.0f - 2.0f * reciprocal(1.0f + odds, 1.0f);
    Vector t = choose(a < 0.625f, near, far);
    return as_floats(as_bits(t) | (as_bits(y) & (int32_t)0x80000000));
}
