// Vectors of floats, written once for every instruction set by the compiler's vector extension.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, COLUMNS = 4;
#elif defined(__AVX2__)
constexpr int LANES = 8, COLUMNS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, COLUMNS = 4;
#else
constexpr int LANES = 4, COLUMNS = 2;
#endif
// The micro-kernel keeps ROWS x COLUMNS vectors of results in registers.
constexpr int ROWS = 6;
constexpr int PANEL = LANES * COLUMNS;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
// 32 bits of a matrix: one float, or a pair of neighbours in bfloat16.
typedef uint32_t Word;

static inline Vector load(const void *from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(void *to, Vector v) { std::memcpy(to, &v, sizeof v); }

static inline Vector broadcast(float x) {
#if defined(__AVX512F__)
    return (Vector)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (Vector)_mm256_set1_ps(x);
#else
    return Vector{x, x, x, x};
#endif
}

static inline Integers broadcast_integer(int32_t x) { return x - Integers{}; }

static inline Vector broadcast_word(const Word *from) {
    float x;
    std::memcpy(&x, from, 4);
    return broadcast(x);
}

static inline Vector lane_numbers() {
    Vector v;
    for (int i = 0; i < LANES; ++i) v[i] = (float)i;
    return v;
}

static inline Vector as_floats(Integers bits) { return (Vector)bits; }
static inline Integers as_bits(Vector v) { return (Integers)v; }
static inline Vector absolute(Vector v) { return as_floats(as_bits(v) & 0x7fffffff); }
// The numbers where the mask (all bits or none) is set, zero elsewhere, also for a NaN.
static inline Vector where(Integers mask, Vector v) { return as_floats(as_bits(v) & mask); }
static inline Vector choose(Integers mask, Vector yes, Vector no) {
    return as_floats((as_bits(yes) & mask) | (as_bits(no) & ~mask));
}

// Prevents the compiler from processing several rows at once, which would spill registers.
static inline void one_after_another() { __asm__ volatile("" ::: "memory"); }

// Both keep a NaN in v.
static inline Vector at_most(Vector v, float limit) {
#if defined(__AVX512F__)
    return (Vector)_mm512_min_ps(_mm512_set1_ps(limit), (__m512)v);
#elif defined(__AVX2__)
    return (Vector)_mm256_min_ps(_mm256_set1_ps(limit), (__m256)v);
#else
    return choose(v > broadcast(limit), broadcast(limit), v);
#endif
}

static inline Vector at_least(Vector v, float limit) {
#if defined(__AVX512F__)
    return (Vector)_mm512_max_ps(_mm512_set1_ps(limit), (__m512)v);
#elif defined(__AVX2__)
    return (Vector)_mm256_max_ps(_mm256_set1_ps(limit), (__m256)v);
#else
    return choose(v < broadcast(limit), broadcast(limit), v);
#endif
}

static inline float sum(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += v[i];
    return total;
#endif
}
