// One tile of the score matrix: which of its pairs are visible, and the weights of those.
#pragma once
#include "activation.h"
#include "call.h"
#include "pack.h"

constexpr int64_t BLOCK_QUERIES = 192;  // at most; a multiple of ROWS and even
constexpr int64_t BLOCK_KEYS = 128;     // a multiple of PANEL
constexpr int64_t GROUPS = BLOCK_QUERIES / ROWS;

// The queries of one block, and what their logits share over all keys.
struct QueryBlock {
    int64_t sequence, head;
    int64_t first, rows;           // queries of the sequence
    int64_t position;              // of the first on the key axis
    int64_t keys;                  // of the sequence
    float unit;                    // of what a tile adds up: LOGIT_UNIT
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
            int64_t place = sequence * term->batch + head * term->head + first * term->query;
            read_term(*term, place, [&](auto from, auto value) {
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
    bool edge;                  // whether something in it is hidden or past the end
    int32_t first[BLOCK_QUERIES], last[BLOCK_QUERIES];  // what each row sees: first <= column < last
    int32_t group_first[GROUPS], group_last[GROUPS];    // what any row of a group sees

    const float *row_bias;
    const float *extra;  // added to the logits, (row, column); null for nothing
    int64_t extra_row;
    float scale, slope, cap;  // in the block's unit
    float to_cap;             // from a product to the argument of tanh; 0 for no cap
    Numbers numbers;

    Tile(const Call &call, const QueryBlock &block, int64_t j, float *extra_room)
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
            // The clamp of the activation would leave a trace of what is hidden.
            if (!block.hides_rows || std::fabs(row_bias[r]) != INFINITY) continue;
            if (row_bias[r] * block.unit < 0) first[r] = last[r] = 0, edge = true;
        }
        if (differs_by_key(call)) gather_extra(call, block, extra_room);
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
    // Sums the terms that differ from key to key; -inf stands for a key that is hidden.
    void gather_extra(const Call &call, const QueryBlock &block, float *room) {
        bool by_row = false;
        for (const Term *term : {&call.bias, &call.mask})
            by_row |= term->data && term->key && term->query;
        by_row |= call.attend.data && call.attend.query;
        extra = room;
        extra_row = by_row ? BLOCK_KEYS : 0;
        for (int64_t r = 0; r < (by_row ? rows : 1); ++r) {
            float *row = room + r * BLOCK_KEYS;
            std::memset(row, 0, BLOCK_KEYS * 4);
            for (const Term *term : {&call.bias, &call.mask}) {
                if (!term->data || !term->key) continue;
                int64_t place = block.sequence * term->batch + block.head * term->head +
                                (block.first + r) * term->query + first_key * term->key;
                read_term(*term, place, [&](auto from, auto value) {
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

// Where a group's derivatives wait: of the weights by their logits, of the cap by the products.
struct Slopes {
    float *steep, *bend;
};

// What a tile's logits depend on beside product and row. PLAIN is most tiles of most calls, and has
// no question left to ask for each vector.
enum Terms : int {
    PLACED = 0,  // a slope, or something is hidden
    EXTRA = 1,   // that, extra logits, or a cap
    PLAIN = 2,
};

// From products q.k of row r and the columns from c on to weights, in place. BACKWARD: the
// derivatives are wanted too.
template <int TERMS, bool COARSE, bool BACKWARD>
static inline __attribute__((always_inline)) void weigh(Vector (&x)[COLUMNS], const Tile &tile,
                                                        int64_t r, int64_t c, Slopes slopes) {
    const Vector lanes = lane_numbers();
    const float bias = tile.row_bias[r];
#pragma GCC unroll 4
    for (int n = 0; n < COLUMNS; ++n) {
        Vector u = x[n] * tile.scale + bias;
        [[maybe_unused]] Integers seen;
        if constexpr (TERMS == EXTRA) {
            if (tile.to_cap != 0) {
                Vector t = tangent(x[n] * tile.to_cap);
                u = t * tile.cap + bias;
                if (BACKWARD) store(slopes.bend + n * LANES, 1.0f - t * t);
            }
            if (tile.extra) {
                Vector extra = load(tile.extra + r * tile.extra_row + c + n * LANES);
                seen = ~(extra == -INFINITY);
                u += extra * LOGIT_UNIT<COARSE>;
            }
        }
        if (TERMS != PLAIN && tile.slope != 0) {
            // The distance is exact: its two ends alone would lose the digits that it needs.
            Vector away = (float)(tile.offset + r - c - n * LANES) - lanes;
            u -= tile.slope * absolute(away);
        }
        Vector odds, w = sigmoid<COARSE>(u, tile.numbers, odds);
        if constexpr (TERMS == EXTRA)
            if (tile.extra) w = where(seen, w);
        if (TERMS != PLAIN && tile.edge) {
            Integers column = __builtin_convertvector(lanes, Integers) + (int32_t)(c + n * LANES);
            w = where((column >= tile.first[r]) & (column < tile.last[r]), w);
        }
        if (BACKWARD) {
            // What is hidden has no slope either, even where its logit is a NaN.
            Vector steep = odds * w * w;
            // Far from 1 this has the weight's rounding once, not twice.
            if (!COARSE) steep = choose(w < 0.7f, w - w * w, steep);
            store(slopes.steep + n * LANES, TERMS == PLAIN ? steep : where(w != 0.0f, steep));
        }
        x[n] = w;
    }
}
