// The working arrays of a unit of the backward pass: a head's queries, blocks of its keys, a tile.
#pragma once
#include "forward.h"

// A tile's weights and dS: by rows of queries for products whose rows are queries, by steps of
// queries (pairs of queries in bfloat16) for products that sum over queries.
template <bool PAIRS> constexpr int64_t STEP_ROW = BLOCK_KEYS + 16;

// Key rows in whole groups: the last group's sums may extend past the block.
constexpr int64_t KEY_ROWS = (BLOCK_KEYS + ROWS - 1) / ROWS * ROWS;

// Blocks of keys that stay in the nearest cache while the queries of a head are read.
constexpr int64_t NEAR_BLOCKS = 4;

// Number of partial sums of a key's gradients over a tile's queries: more sums round less.
constexpr int64_t CHAINS = 4;

// A block of keys in its three forms, and the sums of its gradients.
template <bool PAIRS> struct KeyBlock {
    int64_t j;
    bool packed;
    Word *panels, *value_panels, *steps;
    float *grad_key, *grad_value;
};

template <bool PAIRS> struct BackwardWorkspace {
    int64_t padded_queries;                  // rows of a head, up to whole groups
    int64_t query_row, grad_row;             // words of a row of query and of the gradient
    int64_t steps;                           // of queries
    Columns head_columns, value_columns;
    int64_t head_words, value_words;
    int64_t kept;  // blocks of keys whose sums are in memory at the same time

    Word *query, *grad;              // row form; of one panel only, for floats
    Word *query_steps, *grad_steps;  // step form
    float *grad_mass;                // of each row of a head; null without a mass
    float *grad_query;               // sums, where the unit has no part of its own
    Word *key_forms[NEAR_BLOCKS], *rows;
    float *key_sums;                 // of each kept block: dK, then dV
    Word *weight_steps, *score_steps, *score_rows;
    float *extra, *column_sums;
    int64_t *first, *end;            // the key blocks that each query block visited

    explicit BackwardWorkspace(const Call &call)
        : padded_queries(round_up(call.queries, BLOCK_QUERIES)),
          query_row(row_words<PAIRS>(call.head_dim)), grad_row(row_words<PAIRS>(call.value_dim)),
          steps(words<PAIRS>(padded_queries)), head_columns(call.head_dim),
          value_columns(call.value_dim), head_words(words<PAIRS>(call.head_dim)),
          value_words(words<PAIRS>(call.value_dim)) {
        kept = call.group() > 1 ? parts(parts(call.keys, BLOCK_KEYS), call.splits) : NEAR_BLOCKS;
    }

    int64_t key_block_words() const {
        return BLOCK_KEYS * (head_words + value_words) +
               words<PAIRS>(BLOCK_KEYS) * head_columns.padded();
    }
    int64_t key_sums_size() const {
        return KEY_ROWS * (head_columns.padded() + value_columns.padded());
    }

    KeyBlock<PAIRS> key_block(int64_t j, int64_t slot, int64_t index) const {
        KeyBlock<PAIRS> block;
        block.j = j;
        block.packed = false;
        block.panels = key_forms[slot];
        block.value_panels = block.panels + BLOCK_KEYS * head_words;
        block.steps = block.value_panels + BLOCK_KEYS * value_words;
        block.grad_key = key_sums + index * key_sums_size();
        block.grad_value = block.grad_key + KEY_ROWS * head_columns.padded();
        return block;
    }

    template <class Take> void for_each_array(const Call &call, Take take) {
        take(query, (PAIRS ? padded_queries : PANEL) * query_row);
        take(grad, (PAIRS ? padded_queries : PANEL) * grad_row);
        take(query_steps, steps * head_columns.padded());
        take(grad_steps, steps * value_columns.padded());
        take(grad_mass, padded_queries);
        take(grad_query, call.splits > 1 ? 0 : padded_queries * head_columns.padded());
        for (Word *&forms : key_forms) take(forms, key_block_words());
        take(rows, PANEL * std::max(query_row, grad_row));
        take(key_sums, kept * key_sums_size());
        take(weight_steps, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS>);
        take(score_steps, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS>);
        take(score_rows, PAIRS ? BLOCK_QUERIES * WEIGHTS_ROW<PAIRS> : 0);
        take(extra, BLOCK_QUERIES * BLOCK_KEYS);
        take(column_sums, CHAINS * BLOCK_KEYS);
        take(first, parts(call.queries, call.block_queries));
        take(end, parts(call.queries, call.block_queries));
    }

    int64_t bytes(const Call &call) {
        int64_t total = 0;
        for_each_array(call, [&](auto *&array, int64_t count) {
            total += Arena::rounded(count * int64_t(sizeof(*array)));
        });
        return total;
    }

    void allocate(const Call &call, Arena &arena) {
        for_each_array(call, [&](auto *&array, int64_t count) {
            array = arena.take<std::remove_reference_t<decltype(*array)>>(count);
        });
        if (!call.grad_mass.data) grad_mass = nullptr;
        // Products with the rest of a ragged tile are computed and dropped: any number serves.
        std::memset(weight_steps, 0, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS> * 4);
        std::memset(score_steps, 0, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS> * 4);
    }

    void pack_head(const Call &call, int64_t sequence, int64_t head) {
        pack_queries(call, call.query, sequence, head, call.head_dim, query, query_row, query_steps,
                     head_columns);
        pack_queries(call, call.grad_out, sequence, head, call.value_dim, grad, grad_row, grad_steps,
                     value_columns);
        int64_t queries = call.queries_of(sequence);
        for (int64_t r = 0; grad_mass && r < round_up(queries, ROWS); ++r)
            grad_mass[r] = r < queries ? *call.query_mass(call.grad_mass, sequence, head, r) : 0.0f;
    }

    // Sets a group's rows to the gradients of their masses, to which those of dO V^T are added.
    void start_from_mass(Vector (&x)[ROWS][COLUMNS], int64_t row) const {
        if (!grad_mass) return;
        for (int m = 0; m < ROWS; ++m)
            for (int n = 0; n < COLUMNS; ++n) x[m][n] = broadcast(grad_mass[row + m]);
    }

    void pack_queries(const Call &call, const Rows &from, int64_t sequence, int64_t head,
                      int64_t dim, Word *rows, int64_t stride, Word *to, Columns columns) {
        int64_t queries = call.queries_of(sequence), padded = round_up(queries, ROWS);
        for (int64_t first = 0; first < padded; first += PANEL) {
            Word *target = rows + (PAIRS ? first * stride : 0);
            int64_t many = std::min<int64_t>(PANEL, padded - first);
            for (int64_t r = 0; r < many; ++r) {
                if (first + r < queries)
                    pack_row<PAIRS>(target + r * stride, stride,
                                    call.query_row(from, sequence, head, first + r), dim, call.dtype);
                else
                    std::memset(target + r * stride, 0, stride * 4);
            }
            pack_steps<PAIRS>(to, steps, words<PAIRS>(first), target, stride, many, columns);
        }
    }

    void pack_block(const Call &call, int64_t sequence, int64_t head, KeyBlock<PAIRS> &block) {
        int64_t first_key = block.j * BLOCK_KEYS;
        block.packed = true;
        int64_t count = std::min(BLOCK_KEYS, call.keys_of(sequence) - first_key);
        for (int64_t p = 0; p < count; p += PANEL) {
            int64_t many = std::min<int64_t>(PANEL, count - p);
            for (int64_t r = 0; r < many; ++r)
                pack_row<PAIRS>(rows + r * query_row, query_row,
                                call.key_row(call.key, sequence, head, first_key + p + r),
                                call.head_dim, call.dtype);
            std::memset(rows + many * query_row, 0, (PANEL - many) * query_row * 4);
            pack_panel(block.panels + p * head_words, rows, query_row, head_words);
            pack_steps<PAIRS>(block.steps, words<PAIRS>(BLOCK_KEYS), words<PAIRS>(p), rows, query_row,
                              many, head_columns);
            for (int64_t r = 0; r < many; ++r)
                pack_row<PAIRS>(rows + r * grad_row, grad_row,
                                call.key_row(call.value, sequence, head, first_key + p + r),
                                call.value_dim, call.dtype);
            std::memset(rows + many * grad_row, 0, (PANEL - many) * grad_row * 4);
            pack_panel(block.value_panels + p * value_words, rows, grad_row, value_words);
        }
    }
};

// Gradients of the terms that are added to the logits, summed while dU is in registers.
struct ExtraGradients {
    float *rows = nullptr;     // of the tile's first row
    float *columns = nullptr;  // of the tile's first column, CHAINS times
    float *pairs = nullptr;    // of the tile's first pair
    int64_t pairs_row = 0, pairs_column = 0;
    bool slopes = false;
    double slope = 0.0;        // of this tile

    bool any() const { return rows || columns || pairs || slopes; }

    void add(const Tile &tile, int64_t r, int64_t c, const Vector (&grad)[COLUMNS]) {
        if (r >= tile.rows) return;
        Vector total{}, far{};
        const Vector lanes = lane_numbers();
        for (int n = 0; n < COLUMNS; ++n) {
            total += grad[n];
            if (slopes) {
                Vector away = (float)(tile.offset + r - c - n * LANES) - lanes;
                far += grad[n] * absolute(away);
            }
            if (columns) {
                float *target = columns + r % CHAINS * BLOCK_KEYS + c + n * LANES;
                store(target, load(target) + grad[n]);
            }
        }
        if (rows) rows[r] += sum(total);
        if (slopes) slope -= (double)sum(far);
        if (pairs) {
            float *row = pairs + r * pairs_row + c * pairs_column;
            int64_t many = std::min<int64_t>(PANEL, tile.columns - c);
            for (int64_t k = 0; k < many; ++k) row[k * pairs_column] += grad[k / LANES][k % LANES];
        }
    }
};

// Two rows of a panel to one step: unchanged floats, or interleaved bfloat16.
template <bool PAIRS>
static inline void store_steps(Word *steps, int64_t r, int64_t c, const Vector (&even)[COLUMNS],
                               const Vector (&odd)[COLUMNS]) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS) {
        Word *to = steps + r / 2 * STEP_ROW<PAIRS> + c;
        // 0, 16, 1, 17, ...: an even row's number, then the odd row's.
        const __m512i interleaved = _mm512_add_epi32(
            _mm512_set1_epi32(0x00100000),
            _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                               _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                                 15)));
        for (int n = 0; n < COLUMNS; ++n) {
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd[n], (__m512)even[n]);
            both = _mm512_permutexvar_epi16(interleaved, both);
            std::memcpy(to + n * LANES, &both, 64);
        }
        return;
    }
#endif
    for (int n = 0; n < COLUMNS; ++n) {
        store(steps + r * STEP_ROW<PAIRS> + c + n * LANES, even[n]);
        store(steps + (r + 1) * STEP_ROW<PAIRS> + c + n * LANES, odd[n]);
    }
}
