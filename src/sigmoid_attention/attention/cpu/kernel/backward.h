// The backward pass: for each block of keys, all blocks of queries that visited it.
//
// With W the weights, c the derivative of the cap, s the scale and dO the gradient of the output:
//     dV = W^T dO,  dU = W (1 - W) dO V^T,  dS = dU c,  dQ = s dS K,  dK = s dS^T Q.
// Everything is computed again from the inputs; five products a tile. A unit of work is a key head
// and a part of its key blocks, so that no two units write the same dK and dV; where there are
// several parts, each has a dQ of its own, and these are summed in their order.
#pragma once
#include "forward.h"

// A tile's weights and dS: by rows of queries where queries are the rows of a product, by steps of
// queries (pairs of them in bfloat16) where they are what is summed over.
template <bool PAIRS> constexpr int64_t STEP_ROW = BLOCK_KEYS + 16;

template <bool PAIRS> struct BackwardRoom {
    int64_t padded_queries;                  // rows of a head, up to whole groups
    int64_t query_row, grad_row;             // words of a row of query and of the gradient
    int64_t steps;                           // of queries
    Columns head_columns, value_columns;
    int64_t head_words, value_words, owned;  // owned: key blocks of a unit that are kept at once

    Word *query, *grad;              // row form; of one panel only, for floats
    Word *query_steps, *grad_steps;  // step form
    float *grad_query;               // sums, where the unit has no part of its own
    Word *key_panels, *value_panels, *key_steps, *rows;
    float *grad_key, *grad_value;    // sums for each owned block
    Word *weight_steps, *score_steps, *score_rows;
    float *extra, *column_sums;
    int64_t *first, *end;            // the key blocks that each query block visited

    explicit BackwardRoom(const Call &call)
        : padded_queries(round_up(call.queries, BLOCK_QUERIES)),
          query_row(row_words<PAIRS>(call.head_dim)), grad_row(row_words<PAIRS>(call.value_dim)),
          steps(words<PAIRS>(padded_queries)), head_columns(call.head_dim),
          value_columns(call.value_dim), head_words(words<PAIRS>(call.head_dim)),
          value_words(words<PAIRS>(call.value_dim)) {
        owned = call.group() > 1 ? parts(parts(call.keys, BLOCK_KEYS), call.splits) : 1;
    }

    // Key rows in whole groups: the last group's sums may run past the block.
    static constexpr int64_t KEY_ROWS = (BLOCK_KEYS + ROWS - 1) / ROWS * ROWS;

    template <class Take> void each(const Call &call, Take take) {
        take(query, (PAIRS ? padded_queries : PANEL) * query_row);
        take(grad, (PAIRS ? padded_queries : PANEL) * grad_row);
        take(query_steps, steps * head_columns.padded());
        take(grad_steps, steps * value_columns.padded());
        take(grad_query, call.splits > 1 ? 0 : padded_queries * head_columns.padded());
        take(key_panels, BLOCK_KEYS * head_words);
        take(value_panels, BLOCK_KEYS * value_words);
        take(key_steps, words<PAIRS>(BLOCK_KEYS) * head_columns.padded());
        take(rows, PANEL * std::max(query_row, grad_row));
        take(grad_key, owned * KEY_ROWS * head_columns.padded());
        take(grad_value, owned * KEY_ROWS * value_columns.padded());
        take(weight_steps, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS>);
        take(score_steps, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS>);
        take(score_rows, PAIRS ? BLOCK_QUERIES * WEIGHTS_ROW<PAIRS> : 0);
        take(extra, BLOCK_QUERIES * BLOCK_KEYS);
        take(column_sums, BLOCK_KEYS);
        take(first, parts(call.queries, call.block_queries));
        take(end, parts(call.queries, call.block_queries));
    }

    int64_t bytes(const Call &call) {
        int64_t total = 0;
        each(call, [&](auto *&place, int64_t count) {
            total += Arena::rounded(count * int64_t(sizeof(*place)));
        });
        return total;
    }

    void place(const Call &call, Arena &arena) {
        each(call, [&](auto *&place, int64_t count) {
            place = arena.take<std::remove_reference_t<decltype(*place)>>(count);
        });
        // What lies beside a ragged tile is multiplied too, and its products dropped: any number
        // will do.
        std::memset(weight_steps, 0, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS> * 4);
        std::memset(score_steps, 0, words<PAIRS>(BLOCK_QUERIES) * STEP_ROW<PAIRS> * 4);
    }

    void pack_head(const Call &call, int64_t sequence, int64_t head) {
        pack_queries(call, call.query, sequence, head, call.head_dim, query, query_row, query_steps,
                     head_columns);
        pack_queries(call, call.grad_out, sequence, head, call.value_dim, grad, grad_row, grad_steps,
                     value_columns);
    }

    void pack_queries(const Call &call, const Rows &from, int64_t sequence, int64_t head,
                      int64_t dim, Word *rows, int64_t stride, Word *to, Columns columns) {
        int64_t queries = call.queries_of(sequence), padded = round_up(queries, ROWS);
        for (int64_t first = 0; first < padded; first += PANEL) {
            Word *place = rows + (PAIRS ? first * stride : 0);
            int64_t many = std::min<int64_t>(PANEL, padded - first);
            for (int64_t r = 0; r < many; ++r) {
                if (first + r < queries)
                    pack_row<PAIRS>(place + r * stride, stride,
                                    call.query_row(from, sequence, head, first + r), dim, call.dtype);
                else
                    std::memset(place + r * stride, 0, stride * 4);
            }
            pack_steps<PAIRS>(to, steps, words<PAIRS>(first), place, stride, many, columns);
        }
    }

    void pack_block(const Call &call, int64_t sequence, int64_t head, int64_t block) {
        int64_t first_key = block * BLOCK_KEYS;
        int64_t count = std::min(BLOCK_KEYS, call.keys_of(sequence) - first_key);
        for (int64_t p = 0; p < count; p += PANEL) {
            int64_t many = std::min<int64_t>(PANEL, count - p);
            for (int64_t r = 0; r < many; ++r)
                pack_row<PAIRS>(rows + r * query_row, query_row,
                                call.key_row(call.key, sequence, head, first_key + p + r),
                                call.head_dim, call.dtype);
            std::memset(rows + many * query_row, 0, (PANEL - many) * query_row * 4);
            pack_panel(key_panels + p * head_words, rows, query_row, head_words);
            pack_steps<PAIRS>(key_steps, words<PAIRS>(BLOCK_KEYS), words<PAIRS>(p), rows, query_row,
                              many, head_columns);
            for (int64_t r = 0; r < many; ++r)
                pack_row<PAIRS>(rows + r * grad_row, grad_row,
                                call.key_row(call.value, sequence, head, first_key + p + r),
                                call.value_dim, call.dtype);
            std::memset(rows + many * grad_row, 0, (PANEL - many) * grad_row * 4);
            pack_panel(value_panels + p * value_words, rows, grad_row, value_words);
        }
    }
};

// Gradients of what is added to the logits, collected while dU is in registers.
struct ExtraGradients {
    float *rows = nullptr;     // of the tile's first row
    float *columns = nullptr;  // of the tile's first column
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
                float *place = columns + c + n * LANES;
                store(place, load(place) + grad[n]);
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

// Two rows of a panel to one step: as they are, or interleaved in bfloat16.
template <bool PAIRS>
static inline void store_steps(Word *steps, int64_t r, int64_t c, const Vector (&even)[COLUMNS],
                               const Vector (&odd)[COLUMNS]) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS) {
        Word *to = steps + r / 2 * STEP_ROW<PAIRS> + c;
        // 0, 16, 1, 17, ...: an even row's number, then the odd row's.
        const __m512i interleaved = _mm512_add_epi32(
            _mm512_set1_epi32(0x00100000),
            _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
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

// x += the product of a group's rows, which are the block's from `row` on, with a panel. Floats lie
// in step form as they do in row form, panel by panel, and are kept once.
template <bool PAIRS>
static inline __attribute__((always_inline)) void multiply_rows(
    Vector (&x)[ROWS][COLUMNS], const Word *rows, int64_t stride, const Word *steps_form,
    int64_t steps, int64_t row, const Word *panel, int64_t length, Columns columns) {
    if constexpr (PAIRS) {
        multiply<PAIRS, COLUMNS>(x, rows + row * stride, stride, 1, panel, PANEL, length);
    } else {
        for (int64_t p = 0; p < columns.panels(); ++p) {
            int64_t width = columns.vectors_in(p) * LANES;
            multiply<PAIRS, COLUMNS>(x, steps_form + panel_start(p, steps) + row * width, width, 1,
                                     panel + p * PANEL * PANEL, PANEL,
                                     std::min<int64_t>(PANEL, length - p * PANEL));
        }
    }
}

// Weights and dS of a tile. The weights of a group wait in memory while dO V^T takes the registers.
template <bool PAIRS, bool EXTRA>
static void differentiate_tile(const Tile &tile, const BackwardRoom<PAIRS> &room,
                               int64_t first_query, ExtraGradients &extra) {
    alignas(64) float weights[ROWS][PANEL], bend[ROWS][PANEL];
    for (int64_t c = 0; c < tile.columns; c += PANEL) {
        const Word *keys = room.key_panels + c * room.head_words;
        const Word *values = room.value_panels + c * room.value_words;
        for (int64_t g = 0; g < tile.groups(); ++g) {
            // Groups of keys reach over the border between panels: whoever reads one of them must
            // find all of it.
            int64_t from = tile.group_first[g] / ROWS * ROWS;
            int64_t to = round_up(tile.group_last[g], ROWS);
            if (tile.group_last[g] <= tile.group_first[g] || from >= c + PANEL || to <= c) continue;
            {
                Vector x[ROWS][COLUMNS] = {};
                multiply_rows<PAIRS>(x, room.query, room.query_row, room.query_steps, room.steps,
                                     first_query + g * ROWS, keys, room.head_words,
                                     room.head_columns);
#pragma GCC unroll 6
                for (int m = 0; m < ROWS; ++m) {
                    weigh<EXTRA, PAIRS>(x[m], tile, g * ROWS + m, c, bend[m]);
                    for (int n = 0; n < COLUMNS; ++n) store(weights[m] + n * LANES, x[m][n]);
                }
            }
            Vector x[ROWS][COLUMNS] = {};
            multiply_rows<PAIRS>(x, room.grad, room.grad_row, room.grad_steps, room.steps,
                                 first_query + g * ROWS, values, room.value_words,
                                 room.value_columns);
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m) {
                int64_t r = g * ROWS + m;
#pragma GCC unroll 4
                for (int n = 0; n < COLUMNS; ++n) {
                    Vector w = load(weights[m] + n * LANES);
                    x[m][n] *= w - w * w;
                    // A key that is hidden has no gradient, whatever its value is.
                    if (EXTRA || tile.edge) x[m][n] = where(w != 0.0f, x[m][n]);
                }
                if (extra.any()) extra.add(tile, r, c, x[m]);
                if constexpr (EXTRA)
                    if (tile.to_cap > 0)
                        for (int n = 0; n < COLUMNS; ++n) x[m][n] *= load(bend[m] + n * LANES);
                if constexpr (PAIRS)
                    store_weights<PAIRS>(
                        room.score_rows + r * WEIGHTS_ROW<PAIRS> + words<PAIRS>(c), x[m]);
                if (m % 2) {
                    store_steps<PAIRS>(room.score_steps, r - 1, c, x[m - 1], x[m]);
                    Vector even[COLUMNS], odd[COLUMNS];
                    for (int n = 0; n < COLUMNS; ++n) {
                        even[n] = load(weights[m - 1] + n * LANES);
                        odd[n] = load(weights[m] + n * LANES);
                    }
                    store_steps<PAIRS>(room.weight_steps, r - 1, c, even, odd);
                }
            }
        }
    }
}

// sums += left^T right over the tile's queries, for its keys.
template <bool PAIRS>
static void add_over_queries(const Call &call, const Tile &tile, const Word *left,
                             const Word *right, int64_t steps, int64_t first_step, Columns columns,
                             float *sums) {
    for (int64_t panel = 0; panel < columns.panels(); ++panel) {
        int vectors = columns.vectors_in(panel);
        int64_t width = vectors * LANES;
        const Word *from = right + panel_start(panel, steps) + first_step * width;
        for (int64_t k = 0; k < tile.columns; k += ROWS) {
            int64_t low = tile.first_row(call, k);
            int64_t high = tile.last_row(call, std::min(k + ROWS, tile.columns) - 1);
            if (low >= high) continue;
            int64_t start = PAIRS ? low / 2 : low, stop = words<PAIRS>(high);
            accumulate<PAIRS>(vectors, sums + k * columns.padded() + panel * PANEL, columns.padded(),
                              left + start * STEP_ROW<PAIRS> + k, 1, STEP_ROW<PAIRS>,
                              from + start * width, width, stop - start);
        }
    }
}

// sums += dS K over the tile's keys, for its queries.
template <bool PAIRS>
static void add_over_keys(const Tile &tile, const BackwardRoom<PAIRS> &room, float *sums) {
    const Word *scores = PAIRS ? room.score_rows : room.score_steps;
    constexpr int64_t row = PAIRS ? WEIGHTS_ROW<PAIRS> : STEP_ROW<PAIRS>;
    Columns columns = room.head_columns;
    for (int64_t panel = 0; panel < columns.panels(); ++panel) {
        int vectors = columns.vectors_in(panel);
        int64_t width = vectors * LANES;
        const Word *keys = room.key_steps + panel_start(panel, words<PAIRS>(BLOCK_KEYS));
        for (int64_t g = 0; g < tile.groups(); ++g) {
            if (tile.group_last[g] <= tile.group_first[g]) continue;
            int64_t from = PAIRS ? tile.group_first[g] / 2 : tile.group_first[g];
            int64_t to = words<PAIRS>(tile.group_last[g]);
            // The sums of a whole head are far away; those of the next group are asked for early.
            for (int64_t r = ROWS; g + 1 < tile.groups() && r < 2 * ROWS; ++r)
                for (int n = 0; n < vectors; ++n)
                    __builtin_prefetch(sums + (g * ROWS + r) * columns.padded() + panel * PANEL +
                                       n * LANES);
            accumulate<PAIRS>(vectors, sums + g * ROWS * columns.padded() + panel * PANEL,
                              columns.padded(), scores + g * ROWS * row + from, row, 1,
                              keys + from * width, width, to - from);
        }
    }
}

template <bool PAIRS> struct BackwardUnit {
    const Call &call;
    BackwardRoom<PAIRS> &room;
    int64_t sequence, key_head, split;
    int64_t query_blocks, key_blocks;

    BackwardUnit(const Call &call, BackwardRoom<PAIRS> &room, int64_t sequence, int64_t key_head,
                 int64_t split)
        : call(call), room(room), sequence(sequence), key_head(key_head), split(split),
          query_blocks(parts(call.queries_of(sequence), call.block_queries)),
          key_blocks(parts(call.keys_of(sequence), BLOCK_KEYS)) {}

    // grad_queries: where the sums of each head's dQ go.
    template <class Place> void run(Place grad_queries) {
        int64_t group = call.group();
        for (int64_t member = 0; member < group; ++member) {
            int64_t head = key_head * group + member;
            room.pack_head(call, sequence, head);
            find_visits(head);
            float *grad_query = grad_queries(head);
            std::memset(grad_query, 0,
                        round_up(call.queries_of(sequence), ROWS) * room.head_columns.padded() * 4);
            for (int64_t j = split, turn = 0; j < key_blocks; j += call.splits, ++turn) {
                int64_t place = group > 1 ? turn : 0;
                float *keys = room.grad_key + place * room.KEY_ROWS * room.head_columns.padded();
                float *values = room.grad_value + place * room.KEY_ROWS * room.value_columns.padded();
                if (member == 0) {
                    std::memset(keys, 0, room.KEY_ROWS * room.head_columns.padded() * 4);
                    std::memset(values, 0, room.KEY_ROWS * room.value_columns.padded() * 4);
                }
                key_block(head, j, grad_query, keys, values);
                if (member == group - 1) write_keys(j, keys, values);
            }
            if (call.splits == 1) write_queries(call, room.head_columns, sequence, head, grad_query);
        }
    }

    static void write_queries(const Call &call, Columns columns, int64_t sequence, int64_t head,
                              const float *sums) {
        for (int64_t r = 0; r < call.queries_of(sequence); ++r)
            from_floats(call.query_row(call.grad_query, sequence, head, r),
                        sums + r * columns.padded(), call.head_dim, call.dtype, (float)call.scale);
    }

  private:
    void find_visits(int64_t head) {
        const int64_t *visits = call.visits + (sequence * call.heads + head) *
                                                  parts(call.queries, call.block_queries);
        for (int64_t i = 0; i < query_blocks; ++i) {
            Order order(QueryBlock(call, sequence, head, i, 1.0f));
            while (order.turn < visits[i]) order.take();
            room.first[i] = order.visited_first();
            room.end[i] = order.visited_end();
        }
    }

    void key_block(int64_t head, int64_t j, float *grad_query, float *keys, float *values) {
        bool packed = false;
        for (int64_t i = 0; i < query_blocks; ++i) {
            if (j < room.first[i] || j >= room.end[i]) continue;
            QueryBlock block(call, sequence, head, i, LOGIT_UNIT<PAIRS>);
            int64_t first = j * BLOCK_KEYS, last = std::min(first + BLOCK_KEYS, block.keys) - 1;
            if (most_visible(call, block, first, last) == 0) continue;
            if (call.attend.data && !any_attended(call.attend, block, first, last - first + 1))
                continue;
            if (!packed) room.pack_block(call, sequence, key_head, j);
            packed = true;
            tile(block, j, grad_query + block.first * room.head_columns.padded(), keys, values);
        }
    }

    void tile(const QueryBlock &block, int64_t j, float *grad_query, float *keys, float *values) {
        Tile tile(call, block, j, room.extra);
        ExtraGradients extra = gradients_of(block, tile);
        bool more = call.softcap > 0 || differs_by_key(call);
        (more ? differentiate_tile<PAIRS, true> : differentiate_tile<PAIRS, false>)(
            tile, room, block.first, extra);
        if (call.grad_slopes)
            call.grad_slopes[(sequence * call.heads + block.head) * call.splits + split] +=
                extra.slope;
        if (extra.columns) {
            float *to = call.grad_columns +
                        (sequence * call.heads + block.head) * call.keys + tile.first_key;
            for (int64_t c = 0; c < tile.columns; ++c) to[c] += extra.columns[c];
        }
        int64_t step = words<PAIRS>(block.first);
        add_over_queries<PAIRS>(call, tile, room.weight_steps, room.grad_steps, room.steps, step,
                                room.value_columns, values);
        add_over_queries<PAIRS>(call, tile, room.score_steps, room.query_steps, room.steps, step,
                                room.head_columns, keys);
        add_over_keys<PAIRS>(tile, room, grad_query);
    }

    ExtraGradients gradients_of(const QueryBlock &block, const Tile &tile) {
        ExtraGradients extra;
        int64_t head = sequence * call.heads + block.head;
        if (call.grad_rows)
            extra.rows = call.grad_rows + (head * call.splits + split) * call.queries + block.first;
        if (call.grad_columns) {
            extra.columns = room.column_sums;
            std::memset(extra.columns, 0, BLOCK_KEYS * 4);
        }
        if (call.grad_pairs.data) {
            const Term &term = call.grad_pairs;
            extra.pairs = term.data + sequence * term.batch + block.head * term.head +
                          block.first * term.query + tile.first_key * term.key;
            extra.pairs_row = term.query;
            extra.pairs_column = term.key;
        }
        extra.slopes = call.grad_slopes != nullptr;
        return extra;
    }

    void write_keys(int64_t j, const float *keys, const float *values) {
        int64_t first = j * BLOCK_KEYS;
        int64_t count = std::min(BLOCK_KEYS, call.keys_of(sequence) - first);
        for (int64_t r = 0; r < count; ++r) {
            from_floats(call.key_row(call.grad_key, sequence, key_head, first + r),
                        keys + r * room.head_columns.padded(), call.head_dim, call.dtype,
                        (float)call.scale);
            from_floats(call.key_row(call.grad_value, sequence, key_head, first + r),
                        values + r * room.value_columns.padded(), call.value_dim, call.dtype, 1.0f);
        }
    }
};

template <bool PAIRS> static int backward(const Call &call) {
    thread_local Arena shared;
    BackwardRoom<PAIRS> like(call);
    int64_t head_size = like.padded_queries * like.head_columns.padded();
    int64_t heads = call.sequences * call.heads;
    if (call.splits > 1 && !shared.reserve(call.splits * heads * head_size * 4)) return 1;
    float *partial = call.splits > 1 ? shared.take<float>(call.splits * heads * head_size) : nullptr;
    // Units that would write the same gradients of a shared bias run one after the other.
    bool pairs = call.grad_pairs.data;
    int64_t serial_sequences = pairs && call.grad_pairs.batch == 0 ? call.sequences : 1;
    int64_t serial_heads = pairs && call.grad_pairs.head == 0 ? call.key_heads : 1;
    int64_t sequences = call.sequences / serial_sequences, key_heads = call.key_heads / serial_heads;
    int failed = 0;

#pragma omp parallel num_threads((int)call.threads)
    {
        thread_local Arena arena;
        BackwardRoom<PAIRS> room(call);
        bool ready = arena.reserve(room.bytes(call));
        if (ready) {
            room.place(call, arena);
        } else {
#pragma omp atomic write
            failed = 1;
        }
        for (int64_t turn = 0; turn < serial_sequences * serial_heads; ++turn) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < sequences * key_heads * call.splits; ++task) {
                if (!ready) continue;
                int64_t sequence = task / (key_heads * call.splits) + turn / serial_heads;
                int64_t key_head = task / call.splits % key_heads + turn % serial_heads;
                int64_t split = task % call.splits;
                BackwardUnit<PAIRS> unit(call, room, sequence, key_head, split);
                unit.run([&](int64_t head) {
                    if (!partial) return room.grad_query;
                    return partial + (split * heads + sequence * call.heads + head) * head_size;
                });
            }
        }
        if (partial) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t head = 0; head < heads; ++head) {
                float *sums = partial + head * head_size;
                for (int64_t split = 1; split < call.splits; ++split) {
                    const float *part = sums + split * heads * head_size;
                    for (int64_t k = 0; k < head_size; ++k) sums[k] += part[k];
                }
                BackwardUnit<PAIRS>::write_queries(call, like.head_columns, head / call.heads,
                                                   head % call.heads, sums);
            }
        }
        arena.trim();
    }
    shared.trim();
    return failed;
}
