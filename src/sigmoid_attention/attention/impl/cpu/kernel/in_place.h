// Products with keys and values in the caller's memory, without packing.
#pragma once
#include "forward.h"

// Whether rows of a type are multiplied as pairs of neighbours, without conversion.
template <DataType T> constexpr bool PAIRED = HAS_PAIRS && T == BFLOAT16;
// Elements of a row that are read at once.
template <DataType T> constexpr int64_t READ = PAIRED<T> ? 2 * LANES : LANES;
template <DataType T> constexpr int64_t SIZE = T == FLOAT32 ? 4 : 2;

typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

// Read as floats, or unchanged if they are paired.
template <DataType T> static inline Vector read(const char *from) {
    if constexpr (T == FLOAT32 || PAIRED<T>) return load(from);
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    if constexpr (T == BFLOAT16)
        return as_floats(__builtin_convertvector(halves, Integers) << 16);
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__)
    return (Vector)_mm256_cvtph_ps((__m128i)halves);
#else
    Vector floats;
    for (int i = 0; i < LANES; ++i) floats[i] = from_half(halves[i]);
    return floats;
#endif
}

// Reads the last elements of a row, fewer than READ, followed by zeros.
template <DataType T> static inline Vector read_last(const char *from, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    const uint32_t halves = (1u << (count * SIZE<T> / 2)) - 1;
    if constexpr (SIZE<T> * READ<T> == 64) return (Vector)_mm512_maskz_loadu_epi16(halves, from);
    const __m256i part = _mm256_maskz_loadu_epi16((__mmask16)halves, from);
    return read<T>((const char *)&part);
#endif
    char whole[SIZE<T> * READ<T>] = {};
    std::memcpy(whole, from, count * SIZE<T>);
    return read<T>(whole);
}

// How far ahead a row is prefetched: in bytes, and at most this many rows.
constexpr int64_t AHEAD_BYTES = 4096, AHEAD_ROWS = 64;

// The addresses of the keys or values of a block, and of the first ones of the next block.
struct RowPointers {
    const char *at[BLOCK_KEYS + AHEAD_ROWS];
    int64_t ahead;  // in rows

    explicit RowPointers(int64_t row_bytes)
        : ahead(std::max<int64_t>(
              AHEAD_BYTES / std::max(row_bytes, AHEAD_BYTES / AHEAD_ROWS), 1)) {}

    // Sets the columns from `low` to `end`; all others point to a row of zeros.
    void locate(const Call &call, const Rows &rows, int64_t sequence, int64_t head, int64_t first,
              int64_t low, int64_t end, const char *zeros) {
        int64_t all = BLOCK_KEYS + ahead, high = std::min(end, all);
        std::fill(at, at + low, zeros);
        std::fill(at + high, at + all, zeros);
        for (int64_t c = low; c < high;) {
            int64_t run = high - c;
            if (call.block_table)
                run = std::min(run, call.page_size - (first + c) % call.page_size);
            const char *row = call.key_row(rows, sequence, head, first + c);
            int64_t step = rows.row * call.element_size();
            for (int64_t i = 0; i < run; ++i) at[c + i] = row + i * step;
            c += run;
        }
    }
};

// Rows that are multiplied by a key at once, so that a vector has the products of two keys.
constexpr int BATCH = LANES / 2;
// Vectors of sums that stay in registers while keys are read.
constexpr int SUMS = 4 * COLUMNS;
// Words for the products of a row with the keys of a block, and then for its weights.
constexpr int64_t SCORES_ROW = WEIGHTS_ROW<false>;

// Calls work from `first` to `end` in steps of MOST, the rest in steps of half of it, down to 1.
template <int MOST, class Work>
static inline __attribute__((always_inline)) void in_steps(int64_t first, int64_t end, Work work) {
    for (; first + MOST <= end; first += MOST) work(first, std::integral_constant<int, MOST>());
    if constexpr (MOST > 1) in_steps<MOST / 2>(first, end, work);
}

// With N = LANES, lane i of rows[0] becomes the sum over all lanes of rows[i].
template <int N> static inline __attribute__((always_inline)) void fold(Vector *rows) {
    if constexpr (N > 1) {
        constexpr auto lanes = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; ++i)
            rows[i] = mix_low<N / 2>(rows[i], rows[i + N / 2], lanes) +
                      mix_high<N / 2>(rows[i], rows[i + N / 2], lanes);
        fold<N / 2>(rows);
    }
}

// scores[r * SCORES_ROW + k] = query r . key k, for R queries and the keys from `low` to `high`.
template <DataType T, int R>
static void multiply_keys(const RowPointers &keys, int64_t low, int64_t high, int64_t dim,
                          const Word *query, float *scores) {
    constexpr int KEYS = LANES / R;
    const int64_t stride = row_words<PAIRED<T>>(dim), whole = dim / READ<T> * READ<T>;
    for (int64_t k = low; k < high; k += KEYS) {
        Vector products[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < KEYS; ++i) {
            const char *key = keys.at[k + i], *later = keys.at[k + i + keys.ahead];
            const Word *word = query;
            Vector sums[R] = {};
            auto add = [&](Vector part) {
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    sums[r] = multiply_add<PAIRED<T>>(sums[r], part, load(word + r * stride));
                word += LANES;
            };
            for (int64_t c = 0; c < whole; c += READ<T>) {
                __builtin_prefetch(later + c * SIZE<T>);
                add(read<T>(key + c * SIZE<T>));
            }
            if (whole < dim) add(read_last<T>(key + whole * SIZE<T>, dim - whole));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) products[r * KEYS + i] = sums[r];
        }
        fold<LANES>(products);
        float totals[LANES];
        store(totals, products[0]);
        for (int r = 0; r < R; ++r)
            std::memcpy(scores + r * SCORES_ROW + k, totals + r * KEYS, KEYS * 4);
    }
}

// sums[r][n] += weight of row r and key k times vector n of the key's value; of two keys, pairwise.
template <DataType T, int R, int M, class Part>
static inline __attribute__((always_inline)) void add_keys(
    Vector (&sums)[R][M], const Word *weights, int64_t k, Part part) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRED<T>) {
#pragma GCC unroll 8
        for (int n = 0; n < M; n += 2) {
            __m512i even = (__m512i)part(k, n / 2), odd = (__m512i)part(k + 1, n / 2);
            Vector first = (Vector)_mm512_unpacklo_epi16(even, odd);
            Vector second = (Vector)_mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                Vector w = broadcast_word(weights + r * SCORES_ROW + k / 2);
                sums[r][n] = multiply_add<true>(sums[r][n], w, first);
                sums[r][n + 1] = multiply_add<true>(sums[r][n + 1], w, second);
            }
        }
        return;
    }
#endif
#pragma GCC unroll 8
    for (int n = 0; n < M; ++n) {
        Vector value = part(k, n);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
            sums[r][n] += broadcast_word(weights + r * SCORES_ROW + k) * value;
    }
}

// Restores the order of columns: unpacking interleaves quarters of a vector.
template <int R, int M> static inline void unscramble(Vector (&sums)[R][M]) {
#if defined(__AVX512F__)
    const __m512i front = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i back = _mm512_add_epi32(front, _mm512_set1_epi32(8));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < M; n += 2) {
            __m512 a = (__m512)sums[r][n], b = (__m512)sums[r][n + 1];
            sums[r][n] = (Vector)_mm512_permutex2var_ps(a, front, b);
            sums[r][n + 1] = (Vector)_mm512_permutex2var_ps(a, back, b);
        }
#endif
}

// out[r, c] += sum over the keys from `low` to `high` of weights[r, k] * value[k, c], for R rows
// and the columns of N reads from `column` on; a row's LAST read has `rest` of them.
template <DataType T, int R, int N, bool LAST>
static void add_weighted(const RowPointers &values, int64_t low, int64_t high, int64_t column,
                         int64_t rest, const Word *weights, float *out, int64_t out_row) {
    constexpr int64_t STEP = READ<T> * SIZE<T>;
    Vector sums[R][N * READ<T> / LANES] = {};
    for (int64_t k = low; k < high; k += PAIRED<T> ? 2 : 1)
        add_keys<T>(sums, weights, k, [&](int64_t key, int n) {
            const int64_t offset = column * SIZE<T> + n * STEP;
            __builtin_prefetch(values.at[key + values.ahead] + offset);
            const char *from = values.at[key] + offset;
            return LAST ? read_last<T>(from, rest) : read<T>(from);
        });
    if constexpr (PAIRED<T>) unscramble(sums);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < N * READ<T> / LANES; ++n) {
            float *target = out + r * out_row + column + n * LANES;
            store(target, load(target) + sums[r][n]);
        }
}

// out += the weighted values, for all rows and columns.
template <DataType T>
static void add_weighted(const RowPointers &values, int64_t low, int64_t high, int64_t dim,
                         const Word *weights, int64_t rows, float *out) {
    constexpr int WIDE = READ<T> / LANES;  // vectors of sums from one read
    const int64_t out_row = round_up(dim, READ<T>);
    in_steps<BATCH>(0, rows, [&](int64_t r, auto many) {
        constexpr int R = decltype(many)::value;
        constexpr int N = std::clamp(SUMS / (R * WIDE), 1, 8 / WIDE);
        const Word *row_weights = weights + r * SCORES_ROW;
        in_steps<N>(0, dim / READ<T>, [&](int64_t n, auto reads) {
            add_weighted<T, R, decltype(reads)::value, false>(
                values, low, high, n * READ<T>, 0, row_weights, out + r * out_row, out_row);
        });
        if (int64_t rest = dim % READ<T>)
            add_weighted<T, R, 1, true>(values, low, high, dim - rest, rest, row_weights,
                                        out + r * out_row, out_row);
    });
}
