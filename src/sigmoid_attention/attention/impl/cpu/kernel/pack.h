// From rows of the caller's tensors to the operands of the micro-kernel, and back.
//
// There are three forms. Row form: the words of each row side by side, rows a multiple of LANES
// apart; for the broadcast operand. Panel form: PANEL rows transposed, (word, row); for the operand
// whose columns are these rows. Step form: (panel of columns, step, column), where a step is a row,
// or two interleaved rows of bfloat16; for the operand whose columns are the matrix's columns.
#pragma once
#include <utility>

#include "call.h"
#include "multiply.h"

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t parts(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// The number of words (or steps) for n elements (or rows).
template <bool PAIRS> static inline int64_t words(int64_t n) { return PAIRS ? (n + 1) / 2 : n; }
// The distance between rows of n elements in row form.
template <bool PAIRS> static inline int64_t row_words(int64_t n) {
    return round_up(words<PAIRS>(n), LANES);
}

static inline float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

static inline float from_half(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu, sign = uint32_t(half & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude << 13));
    // The exponents' biases differ by 112; the product is exact, also for subnormal halves.
    return float_of_bits(sign | bits_of_float(float_of_bits(magnitude << 13) * 0x1p112f));
}

static inline float from_bfloat(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }

// Calls read(from, value): value(from[n]) is the term's number n elements after `offset`.
template <class Read> static inline void read_term(const Term &term, int64_t offset, Read read) {
    if (term.dtype == FLOAT32)
        read((const float *)term.data + offset, [](float x) { return x; });
    else if (term.dtype == BFLOAT16)
        read((const uint16_t *)term.data + offset, from_bfloat);
    else
        read((const uint16_t *)term.data + offset, from_half);
}

static inline uint16_t to_half(float x) {
    uint32_t bits = bits_of_float(x), sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
    if (bits < 0x38800000u) {
        // Adding one half lets the addition round to the spacing of subnormal halves.
        float shifted = float_of_bits(bits) + 0.5f;
        return uint16_t(sign | (bits_of_float(shifted) - 0x3f000000u));
    }
    return uint16_t(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1)) >> 13));
}

static inline uint16_t to_bfloat(float x) {
    uint32_t bits = bits_of_float(x);
    uint16_t rounded = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
    return x != x ? uint16_t((bits >> 16) | 0x40u) : rounded;
}

// A tensor without elements may have a null address, which memcpy must not get even for 0 bytes.
static inline void copy(void *to, const void *from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}

static void to_floats(float *to, const char *from, int64_t count, int64_t dtype) {
    const uint16_t *halves = reinterpret_cast<const uint16_t *>(from);
    if (dtype == FLOAT32) {
        copy(to, from, count * 4);
    } else if (dtype == BFLOAT16) {
        for (int64_t c = 0; c < count; ++c) {
            uint32_t bits = uint32_t(halves[c]) << 16;
            std::memcpy(to + c, &bits, 4);
        }
    } else {
        int64_t c = 0;
#if defined(__F16C__)
        for (; c + 8 <= count; c += 8)
            _mm256_storeu_ps(to + c, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + c))));
#endif
        for (; c < count; ++c) to[c] = from_half(halves[c]);
    }
}

static void from_floats(char *to, const float *from, int64_t count, int64_t dtype, float factor) {
    uint16_t *halves = reinterpret_cast<uint16_t *>(to);
    if (dtype == FLOAT32) {
        float *floats = reinterpret_cast<float *>(to);
        for (int64_t c = 0; c < count; ++c) floats[c] = from[c] * factor;
    } else if (dtype == BFLOAT16) {
        for (int64_t c = 0; c < count; ++c) halves[c] = to_bfloat(from[c] * factor);
    } else {
        int64_t c = 0;
#if defined(__F16C__)
        for (; c + 8 <= count; c += 8) {
            __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(from + c), _mm256_set1_ps(factor));
            _mm_storeu_si128((__m128i *)(halves + c), _mm256_cvtps_ph(scaled, 0));
        }
#endif
        for (; c < count; ++c) halves[c] = to_half(from[c] * factor);
    }
}

// Rows are prefetched this many rows ahead: processors do not prefetch across pages.
constexpr int64_t AHEAD = 32;

static inline void fetch_row(const char *row, int64_t bytes) {
    for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b);
}

// Prefetches the words that are read next, in one part for each group of rows. Without it the first
// group would wait for all of them.
struct Prefetcher {
    const char *at, *end;
    int64_t part;

    Prefetcher(const Word *from, int64_t count, int64_t turns)
        : at(reinterpret_cast<const char *>(from)), end(at + count * 4),
          part(round_up(parts(count * 4, turns), 64)) {}

    void fetch_part() {
        const char *stop = at + part < end ? at + part : end;
        for (; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
    }
};

// One row in row form, zeros up to `stride` words.
template <bool PAIRS>
static inline void pack_row(Word *to, int64_t stride, const char *from, int64_t dim, int64_t dtype) {
    if (PAIRS) {
        copy(to, from, dim * 2);
        std::memset(reinterpret_cast<char *>(to) + dim * 2, 0, stride * 4 - dim * 2);
    } else {
        to_floats(reinterpret_cast<float *>(to), from, dim, dtype);
        std::memset(to + dim, 0, (stride - dim) * 4);
    }
}

// The Euclidean norm of a row in row form.
template <bool PAIRS> static inline double row_norm(const Word *row, int64_t stride) {
    Vector total{};
    for (int64_t w = 0; w < stride; w += LANES) {
        if (PAIRS) {
            Integers pairs = as_bits(load(row + w));
            Vector low = as_floats(pairs << 16), high = as_floats(pairs & (int32_t)0xffff0000);
            total += low * low + high * high;
        } else {
            Vector v = load(row + w);
            total += v * v;
        }
    }
    return std::sqrt((double)sum(total));
}

// The larger number, or a NaN if one of the two is a NaN.
static inline double larger(double a, double b) { return a != a || a >= b ? a : b; }

template <int D, int... I>
static inline Vector mix_low(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I & D) ? LANES + I - D : I)...);
}

template <int D, int... I>
static inline Vector mix_high(Vector a, Vector b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, ((I & D) ? LANES + I : I + D)...);
}

// Swaps the off-diagonal blocks of size D; for all powers of two this transposes.
template <int D> static inline void transpose_blocks(Vector (&rows)[LANES]) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
    for (int i = 0; i < LANES; ++i) {
        if (i & D) continue;
        Vector a = rows[i], b = rows[i + D];
        rows[i] = mix_low<D>(a, b, lanes);
        rows[i + D] = mix_high<D>(a, b, lanes);
    }
    if constexpr (D > 1) transpose_blocks<D / 2>(rows);
}

// Row form (PANEL rows) to panel form.
static void pack_panel(Word *to, const Word *rows, int64_t stride, int64_t row_length) {
    for (int64_t r = 0; r < PANEL; r += LANES) {
        for (int64_t w = 0; w < row_length; w += LANES) {
            Vector block[LANES];
            for (int i = 0; i < LANES; ++i) block[i] = load(rows + (r + i) * stride + w);
            transpose_blocks<LANES / 2>(block);
            int64_t many = row_length - w < LANES ? row_length - w : LANES;
            for (int64_t i = 0; i < many; ++i) store(to + (w + i) * PANEL + r, block[i]);
        }
    }
}

// The division of the columns of a matrix in step form into panels.
struct Columns {
    int64_t vectors;

    explicit Columns(int64_t dim) : vectors(parts(dim, LANES)) {}
    int64_t padded() const { return vectors * LANES; }
    int64_t panels() const { return parts(vectors, COLUMNS); }
    int vectors_in(int64_t panel) const {
        int64_t left = vectors - panel * COLUMNS;
        return left < COLUMNS ? (int)left : COLUMNS;
    }
};

// The start of a panel in step form, for a matrix of this many steps.
static inline int64_t panel_start(int64_t panel, int64_t steps) { return panel * PANEL * steps; }

// Row form to step form: `count` rows, which may be odd for pairs, to the steps from `first` on.
template <bool PAIRS>
static void pack_steps(Word *to, int64_t steps, int64_t first, const Word *rows, int64_t stride,
                       int64_t count, Columns columns) {
    for (int64_t panel = 0; panel < columns.panels(); ++panel) {
        int64_t width = columns.vectors_in(panel) * LANES;
        Word *target = to + panel_start(panel, steps) + first * width;
        if (PAIRS) {
            const uint16_t *from = reinterpret_cast<const uint16_t *>(rows) + panel * PANEL;
            for (int64_t r = 0; r < count; r += 2, target += width) {
                const uint16_t *even = from + r * stride * 2, *odd = even + stride * 2;
                if (r + 1 < count)
                    for (int64_t c = 0; c < width; ++c) target[c] = even[c] | uint32_t(odd[c]) << 16;
                else
                    for (int64_t c = 0; c < width; ++c) target[c] = even[c];
            }
        } else {
            const Word *from = rows + panel * PANEL;
            for (int64_t r = 0; r < count; ++r, target += width)
                std::memcpy(target, from + r * stride, width * 4);
        }
    }
}
