// The micro-kernel: ROWS x N vectors of results stay in registers during all steps.
#pragma once
#include "vector.h"

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
#else
constexpr bool HAS_PAIRS = false;
#endif

// PAIRS: matrices hold pairs of bfloat16, which are multiplied two at a time; otherwise floats.
template <bool PAIRS> static inline Vector multiply_add(Vector sum, Vector a, Vector b) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS) return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

// sums[m][n] += sum over k of a[m * a_row + k * a_step] * b[k * b_step + n * LANES + lane]
template <bool PAIRS, int N>
static inline __attribute__((always_inline)) void multiply(
    Vector (&sums)[ROWS][N], const Word *a, int64_t a_row, int64_t a_step, const Word *b,
    int64_t b_step, int64_t steps) {
    for (int64_t k = 0; k < steps; ++k) {
        Vector columns[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) columns[n] = load(b + n * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; ++m) {
            Vector row = broadcast_word(a + m * a_row);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n)
                sums[m][n] = multiply_add<PAIRS>(sums[m][n], row, columns[n]);
        }
        a += a_step;
        b += b_step;
    }
}

template <bool PAIRS, int N>
static void accumulate(float *sums, int64_t sums_row, const Word *a, int64_t a_row, int64_t a_step,
                       const Word *b, int64_t b_step, int64_t steps) {
    // Starts from zero, so that a long sum is a sum of short ones: in a single chain over all keys
    // the rounding error would grow with the square root of their number.
    Vector registers[ROWS][N] = {};
    multiply<PAIRS, N>(registers, a, a_row, a_step, b, b_step, steps);
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            float *target = sums + m * sums_row + n * LANES;
            store(target, load(target) + registers[m][n]);
        }
}

// The same for a number of column vectors, 1 to COLUMNS, that is a run-time argument.
template <bool PAIRS>
static void accumulate(int vectors, float *sums, int64_t sums_row, const Word *a, int64_t a_row,
                       int64_t a_step, const Word *b, int64_t b_step, int64_t steps) {
    switch (vectors) {
    case 1: return accumulate<PAIRS, 1>(sums, sums_row, a, a_row, a_step, b, b_step, steps);
    case 2: return accumulate<PAIRS, 2>(sums, sums_row, a, a_row, a_step, b, b_step, steps);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3: return accumulate<PAIRS, 3>(sums, sums_row, a, a_row, a_step, b, b_step, steps);
    case 4: return accumulate<PAIRS, 4>(sums, sums_row, a, a_row, a_step, b, b_step, steps);
#endif
    }
}
