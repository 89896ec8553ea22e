// A tile of the score matrix: its visible pairs and their weights.
#pragma once
#include "activation.h"
#include "call.h"
#include "pack.h"

constexpr int64_t BLOCK_QUERIES = 192;  // at most; a multiple of ROWS and even
constexpr int64_t BLOCK_KEYS = 128;     // a multiple of PANEL
constexpr int64_t GROUPS = BLOCK_QUERIES / ROWS;

// The queries of one block, and the terms of their logits that are the same for all keys.
struct QueryBlock {
    int64_t sequence, head;
    int64_t first, rows;           // queries of the sequence
    int64_t position;              // of the first on the key axis
    int64_t keys;                  // of the sequence
    float unit;                    // of the logits of a tile: LOGIT_UNIT
    float row_bias[BLOCK_QUERIES];  // in that unit
    bool hides_rows = false;       // whether a row's bias is infinite
    float slope;

    QueryBlock(const Call &call, int64_t sequence, int64_t head, int64_t block, float unit)
        : sequence(sequence), head(head), first(block * call.block_queries), unit(unit) {
        int64_t left = call.queries_of(sequence) - first;
        rows = left < call.block_queries ? left : call.block_queries;
        keys = call.keys_of(sequence);
        position = first + keys - call.queries_of(sequence);
        slope = call.slopes
                    ? call.slopes[sequence * call.slopes_batch + head * call.slopes_head]
                    : 0.0f;
        for (int64_t r = 0; r < BLOCK_QUERIES; ++r) row_bias[r] = (float)call.constant;
        for (const Term *term : {&call.bias, &call.mask}) {
            if (!term->data || term->key) continue;
            int64_t from_start = sequence * term->batch + head * term->head + first * term->query;
            read_term(*term, from_start, [&](auto from, auto value) {
                for (int64_t r = 0; r < rows; ++r) {
                    row_bias[r] += value(from[r * term->query]);
                    hides_rows |= row_bias[r] == -INFINITY;
                }
            });
        }
        for (int64_t r = 0; r < rows; ++r) row_bias[r] *= unit;
    }
};

static inline bool differs_by_key(const Call &call) {
    return (call.bias.data && call.bias.key) || (call.mask.data && call.mask.key) || call.attend.data;
}

struct Tile {
    int64_t rows, columns;      // queries and keys in it
    int64_t first_key, offset;  // offset: from the first key to the first query
    bool edge;                  // whether a pair is hidden or past the end
    int32_t first[BLOCK_QUERIES], last[BLOCK_QUERIES];  // a row sees first <= column < last
    int32_t group_first[GROUPS], group_last[GROUPS];    // the union over the rows of a group

    const float *row_bias;
    const float *extra;  // added to the logits, (row, column); null for nothing
    int64_t extra_row;
    float scale, slope, cap;  // in the block's unit
    float to_cap;             // from a product to the argument of tanh; 0 for no cap
    Coefficients numbers;

    Tile(const Call &call, const QueryBlock &block, int64_t j, float *extra_buffer)
        : rows(block.rows), first_key(j * BLOCK_KEYS), offset(block.position - first_key),
          row_bias(block.row_bias), extra(nullptr), extra_row(0),
          scale((float)call.scale * block.unit), slope(block.slope * block.unit),
          cap((float)call.softcap * block.unit),
          to_cap(call.softcap > 0 ? (float)(call.scale / call.softcap) : 0.0f),
          numbers(block.unit == 1.0f ? EXACT : ROUGH) {
        int64_t left = block.keys - first_key;
        columns = left < BLOCK_KEYS ? left : BLOCK_KEYS;
        bool inside = (call.left < 0 || offset + rows - 1 <= call.left) &&
                      (call.right < 0 || columns - 1 - offset <= call.right);
        edge = !inside || columns % PANEL || rows % ROWS;
        for (int64_t r = 0; r < groups() * ROWS; ++r) {
            int64_t from = call.left < 0 ? 0 : offset + r - call.left;
            int64_t to = call.right < 0 ? columns : offset + r + call.right + 1;
            first[r] = (int32_t)(from < 0 ? 0 : from < columns ? from : columns);
            last[r] = (int32_t)(to < 0 ? 0 : to < columns ? to : columns);
            if (r >= rows) first[r] = last[r] = 0;
        }
        for (int64_t g = 0; g < groups(); ++g) {
            int64_t top = g * ROWS, bottom = top + ROWS < rows ? top + ROWS - 1 : rows - 1;
            group_first[g] = first[top];
            group_last[g] = last[bottom];
        }
        for (int64_t r = 0; r < rows; ++r) {
            // The clamp of the activation would give a hidden key a small weight.
            if (!block.hides_rows || std::fabs(row_bias[r]) != INFINITY) continue;
            if (row_bias[r] * block.unit < 0) first[r] = last[r] = 0, edge = true;
        }
        if (differs_by_key(call)) gather_extra(call, block, extra_buffer);
    }

    int64_t groups() const { return parts(rows, ROWS); }
    bool has_extra() const { return extra || to_cap != 0; }
    bool is_plain() const { return !has_extra() && !edge && slope == 0; }

    // Whether every row of a group sees every column from `low` to before `high`.
    bool group_sees(int64_t g, int64_t low, int64_t high) const {
        for (int64_t r = g * ROWS; r < (g + 1) * ROWS; ++r)
            if (first[r] > low || last[r] < high) return false;
        return true;
    }

    // The rows that see any of the columns from `low` to `high`, both included.
    int64_t first_row(const Call &call, int64_t low) const {
        int64_t r = call.right < 0 ? 0 : low - call.right - offset;
        return r < 0 ? 0 : r < rows ? r : rows;
    }
    int64_t last_row(const Call &call, int64_t high) const {
        int64_t r = call.left < 0 ? rows : high + call.left - offset + 1;
        return r < 0 ? 0 : r < rows ? r : rows;
    }

  private:
    // Sums the terms that depend on the key; -inf marks a hidden key.
    void gather_extra(const Call &call, const QueryBlock &block, float *buffer) {
        bool by_row = false;
        for (const Term *term : {&call.bias, &call.mask})
            by_row |= term->data && term->key && term->query;
        by_row |= call.attend.data && call.attend.query;
        extra = buffer;
        extra_row = by_row ? BLOCK_KEYS : 0;
        for (int64_t r = 0; r < (by_row ? rows : 1); ++r) {
            float *row = buffer + r * BLOCK_KEYS;
            std::memset(row, 0, BLOCK_KEYS * 4);
            for (const Term *term : {&call.bias, &call.mask}) {
                if (!term->data || !term->key) continue;
                int64_t from_start = block.sequence * term->batch + block.head * term->head +
                                (block.first + r) * term->query + first_key * term->key;
                read_term(*term, from_start, [&](auto from, auto value) {
                    if (term->key == 1)
                        for (int64_t c = 0; c < columns; ++c) row[c] += value(from[c]);
                    else
                        for (int64_t c = 0; c < columns; ++c) row[c] += value(from[c * term->key]);
                });
            }
            if (call.attend.data) {
                const Flags &flags = call.attend;
                const uint8_t *from = flags.data + block.sequence * flags.batch +
                                      block.head * flags.head + (block.first + r) * flags.query +
                                      first_key * flags.key;
                for (int64_t c = 0; c < columns; ++c)
                    if (!from[c * flags.key]) row[c] = -INFINITY;
            }
        }
    }
};

// Buffers for derivatives: of the weights by the logits, and of the cap by the products.
struct Derivatives {
    float *of_sigmoid, *of_cap;
};

// What a tile's logits depend on beside product and row. PLAIN tiles, the most frequent ones, need
// no branch for each vector.
enum Terms : int {
    GENERAL = 0,  // also a slope, or hidden pairs
    EXTRA = 1,    // also extra logits, or a cap
    PLAIN = 2,
};

// Turns products q.k of row r and the columns from c on into weights, in place. With BACKWARD it
// stores the derivatives too.
template <int TERMS, bool COARSE, bool BACKWARD>
static inline __attribute__((always_inline)) void set_weights(
    Vector (&x)[COLUMNS], const Tile &tile, int64_t r, int64_t c, Derivatives derivatives) {
    const Vector lanes = lane_numbers();
    const float bias = tile.row_bias[r];
#pragma GCC unroll 4
    for (int n = 0; n < COLUMNS; ++n) {
        Vector u = x[n] * tile.scale + bias;
        [[maybe_unused]] Integers shown;
        if constexpr (TERMS == EXTRA) {
            if (tile.to_cap != 0) {
                Vector t = hyperbolic_tangent(x[n] * tile.to_cap);
                u = t * tile.cap + bias;
                if (BACKWARD) store(derivatives.of_cap + n * LANES, 1.0f - t * t);
            }
            if (tile.extra) {
                Vector extra = load(tile.extra + r * tile.extra_row + c + n * LANES);
                shown = ~(extra == -INFINITY);
                u += extra * LOGIT_UNIT<COARSE>;
            }
        }
        if (TERMS != PLAIN && tile.slope != 0) {
            // The distance is exact. As a difference of two floats it would lose digits.
            Vector away = (float)(tile.offset + r - c - n * LANES) - lanes;
            u -= tile.slope * absolute(away);
        }
        Vector odds, w = sigmoid<COARSE>(u, tile.numbers, odds);
        if constexpr (TERMS == EXTRA)
            if (tile.extra) w = where(shown, w);
        if (TERMS != PLAIN && tile.edge) {
            Integers column = __builtin_convertvector(lanes, Integers) + (int32_t)(c + n * LANES);
            w = where((column >= tile.first[r]) & (column < tile.last[r]), w);
        }
        if (BACKWARD) {
            // A hidden pair has no derivative, even if its logit is a NaN.
            Vector slope = odds * w * w;
            // For weights well below 1 this form has the weight's rounding once, not twice.
            if (!COARSE) slope = choose(w < 0.7f, w - w * w, slope);
            store(derivatives.of_sigmoid + n * LANES,
                  TERMS == PLAIN ? slope : where(w != 0.0f, slope));
        }
        x[n] = w;
    }
}
