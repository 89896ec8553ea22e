// The backward pass: for each block of keys, all blocks of queries that visited it.
//
// With W the weights, c the derivative of the cap, s the scale and dO the gradient of the output:
// dV = W^T dO,  dU = W (1 - W) dO V^T,  dS = dU c,  dQ = s dS K,  dK = s dS^T Q. The gradient of a
// row's mass is added to its row of dO V^T. Everything is recomputed from the inputs, with five
// products for each tile. A unit of work is a key head and a part of its key blocks, so that no two
// units write the same dK and dV. If there are several parts, each has its own dQ, and these are
// summed in their order.
#pragma once
#include <algorithm>
#include <vector>

#include "backward_workspace.h"

// x += the product of a group's rows, from `row` on in the block, with a panel. Floats have the
// same order in step form and in row form within a panel, and are stored once.
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

// Weights and dS of a tile. The weights of a group are in memory while dO V^T uses the registers.
template <bool PAIRS, int TERMS>
static void differentiate_tile(const Tile &tile, const BackwardWorkspace<PAIRS> &work,
                               const KeyBlock<PAIRS> &block, int64_t first_query,
                               ExtraGradients &extra) {
    alignas(64) float weights[ROWS][PANEL], of_sigmoid[ROWS][PANEL], of_cap[ROWS][PANEL];
    for (int64_t c = 0; c < tile.columns; c += PANEL) {
        const Word *keys = block.panels + c * work.head_words;
        const Word *values = block.value_panels + c * work.value_words;
        for (int64_t g = 0; g < tile.groups(); ++g) {
            // Groups of keys cross the border between panels, and are read as a whole.
            int64_t from = tile.group_first[g] / ROWS * ROWS;
            int64_t to = round_up(tile.group_last[g], ROWS);
            if (tile.group_last[g] <= tile.group_first[g] || from >= c + PANEL || to <= c) continue;
            {
                Vector x[ROWS][COLUMNS] = {};
                multiply_rows<PAIRS>(x, work.query, work.query_row, work.query_steps, work.steps,
                                     first_query + g * ROWS, keys, work.head_words,
                                     work.head_columns);
#pragma GCC unroll 6
                for (int m = 0; m < ROWS; ++m) {
                    set_weights<TERMS, PAIRS, true>(x[m], tile, g * ROWS + m, c,
                                                    {of_sigmoid[m], of_cap[m]});
                    for (int n = 0; n < COLUMNS; ++n) store(weights[m] + n * LANES, x[m][n]);
                }
            }
            Vector x[ROWS][COLUMNS] = {};
            work.start_from_mass(x, first_query + g * ROWS);
            multiply_rows<PAIRS>(x, work.grad, work.grad_row, work.grad_steps, work.steps,
                                 first_query + g * ROWS, values, work.value_words,
                                 work.value_columns);
#pragma GCC unroll 6
            for (int m = 0; m < ROWS; ++m) {
                int64_t r = g * ROWS + m;
#pragma GCC unroll 4
                for (int n = 0; n < COLUMNS; ++n) {
                    Vector slope = load(of_sigmoid[m] + n * LANES);
                    x[m][n] *= slope;
                    // A hidden key has no gradient, even if its value is a NaN.
                    if (TERMS != PLAIN) x[m][n] = where(slope != 0.0f, x[m][n]);
                }
                if (extra.any()) extra.add(tile, r, c, x[m]);
                if constexpr (TERMS == EXTRA)
                    if (tile.to_cap != 0)
                        for (int n = 0; n < COLUMNS; ++n) x[m][n] *= load(of_cap[m] + n * LANES);
                if constexpr (PAIRS)
                    store_weights<PAIRS>(
                        work.score_rows + r * WEIGHTS_ROW<PAIRS> + words<PAIRS>(c), x[m]);
                if (m % 2) {
                    store_steps<PAIRS>(work.score_steps, r - 1, c, x[m - 1], x[m]);
                    Vector even[COLUMNS], odd[COLUMNS];
                    for (int n = 0; n < COLUMNS; ++n) {
                        even[n] = load(weights[m - 1] + n * LANES);
                        odd[n] = load(weights[m] + n * LANES);
                    }
                    store_steps<PAIRS>(work.weight_steps, r - 1, c, even, odd);
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
static void add_over_keys(const Tile &tile, const BackwardWorkspace<PAIRS> &work,
                          const KeyBlock<PAIRS> &block, float *sums) {
    const Word *scores = PAIRS ? work.score_rows : work.score_steps;
    constexpr int64_t row = PAIRS ? WEIGHTS_ROW<PAIRS> : STEP_ROW<PAIRS>;
    Columns columns = work.head_columns;
    for (int64_t panel = 0; panel < columns.panels(); ++panel) {
        int vectors = columns.vectors_in(panel);
        int64_t width = vectors * LANES;
        const Word *keys = block.steps + panel_start(panel, words<PAIRS>(BLOCK_KEYS));
        for (int64_t g = 0; g < tile.groups(); ++g) {
            if (tile.group_last[g] <= tile.group_first[g]) continue;
            int64_t from = PAIRS ? tile.group_first[g] / 2 : tile.group_first[g];
            int64_t to = words<PAIRS>(tile.group_last[g]);
            // The sums of a whole head do not fit in the nearest cache: prefetch the next group's.
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
    BackwardWorkspace<PAIRS> &work;
    int64_t sequence, key_head, split;
    int64_t query_blocks, key_blocks;

    BackwardUnit(const Call &call, BackwardWorkspace<PAIRS> &work, int64_t sequence, int64_t key_head,
                 int64_t split)
        : call(call), work(work), sequence(sequence), key_head(key_head), split(split),
          query_blocks(parts(call.queries_of(sequence), call.block_queries)),
          key_blocks(parts(call.keys_of(sequence), BLOCK_KEYS)) {}

    // grad_queries: gives the address of the sums of each head's dQ.
    template <class Address> void run(Address grad_queries) {
        int64_t group = call.group();
        for (int64_t member = 0; member < group; ++member) {
            int64_t head = key_head * group + member;
            work.pack_head(call, sequence, head);
            find_visits(head);
            float *grad_query = grad_queries(head);
            std::memset(grad_query, 0,
                        round_up(call.queries_of(sequence), ROWS) * work.head_columns.padded() * 4);
            for (int64_t j = split, turn = 0; j < key_blocks; j += NEAR_BLOCKS * call.splits) {
                KeyBlock<PAIRS> blocks[NEAR_BLOCKS];
                int64_t many = 0;
                for (; many < NEAR_BLOCKS && j + many * call.splits < key_blocks; ++many, ++turn) {
                    int64_t index = group > 1 ? turn : many;
                    blocks[many] = work.key_block(j + many * call.splits, many, index);
                    if (member == 0)
                        std::memset(blocks[many].grad_key, 0, work.key_sums_size() * 4);
                }
                for (int64_t i = 0; i < query_blocks; ++i)
                    for (int64_t m = 0; m < many; ++m) visit(head, i, blocks[m], grad_query);
                for (int64_t m = 0; m < many; ++m)
                    if (member == group - 1) write_keys(blocks[m]);
            }
            if (call.splits == 1) write_queries(call, work.head_columns, sequence, head, grad_query);
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
        const int64_t *visits =
            call.visits + (sequence * call.heads + head) * call.visits_row;
        for (int64_t i = 0; i < query_blocks; ++i) {
            Order order(QueryBlock(call, sequence, head, i, 1.0f));
            while (order.turn < visits[i]) order.take();
            work.first[i] = order.visited_first();
            work.end[i] = order.visited_end();
        }
    }

    void visit(int64_t head, int64_t i, KeyBlock<PAIRS> &keys, float *grad_query) {
        if (keys.j < work.first[i] || keys.j >= work.end[i]) return;
        QueryBlock block(call, sequence, head, i, LOGIT_UNIT<PAIRS>);
        int64_t first = keys.j * BLOCK_KEYS, last = std::min(first + BLOCK_KEYS, block.keys) - 1;
        if (most_visible(call, block, first, last) == 0) return;
        if (call.attend.data && !any_attended(call.attend, block, first, last - first + 1)) return;
        if (!keys.packed) work.pack_block(call, sequence, key_head, keys);
        tile(block, keys, grad_query + block.first * work.head_columns.padded());
    }

    void tile(const QueryBlock &block, const KeyBlock<PAIRS> &keys, float *grad_query) {
        Tile tile(call, block, keys.j, work.extra);
        ExtraGradients extra = gradients_of(block, tile);
        auto differentiate = tile.has_extra()   ? differentiate_tile<PAIRS, EXTRA>
                             : tile.is_plain() ? differentiate_tile<PAIRS, PLAIN>
                                               : differentiate_tile<PAIRS, GENERAL>;
        differentiate(tile, work, keys, block.first, extra);
        if (call.grad_slopes)
            call.grad_slopes[(sequence * call.heads + block.head) * call.splits + split] +=
                extra.slope;
        if (extra.columns) {
            float *to = call.grad_columns +
                        (sequence * call.heads + block.head) * call.keys + tile.first_key;
            for (int64_t chain = 0; chain < CHAINS; ++chain)
                for (int64_t c = 0; c < tile.columns; ++c)
                    to[c] += extra.columns[chain * BLOCK_KEYS + c];
        }
        int64_t step = words<PAIRS>(block.first);
        add_over_queries<PAIRS>(call, tile, work.weight_steps, work.grad_steps, work.steps, step,
                                work.value_columns, keys.grad_value);
        add_over_queries<PAIRS>(call, tile, work.score_steps, work.query_steps, work.steps, step,
                                work.head_columns, keys.grad_key);
        add_over_keys<PAIRS>(tile, work, keys, grad_query);
    }

    ExtraGradients gradients_of(const QueryBlock &block, const Tile &tile) {
        ExtraGradients extra;
        int64_t head = sequence * call.heads + block.head;
        if (call.grad_rows)
            extra.rows = call.grad_rows + (head * call.splits + split) * call.queries + block.first;
        if (call.grad_columns) {
            extra.columns = work.column_sums;
            std::memset(extra.columns, 0, CHAINS * BLOCK_KEYS * 4);
        }
        if (call.grad_pairs.data) {
            const TermGradient &term = call.grad_pairs;
            extra.pairs = term.data + sequence * term.batch + block.head * term.head +
                          block.first * term.query + tile.first_key * term.key;
            extra.pairs_row = term.query;
            extra.pairs_column = term.key;
        }
        extra.slopes = call.grad_slopes != nullptr;
        return extra;
    }

    void write_keys(const KeyBlock<PAIRS> &block) {
        int64_t first = block.j * BLOCK_KEYS;
        int64_t count = std::min(BLOCK_KEYS, call.keys_of(sequence) - first);
        for (int64_t r = 0; r < count; ++r) {
            from_floats(call.key_row(call.grad_key, sequence, key_head, first + r),
                        block.grad_key + r * work.head_columns.padded(), call.head_dim, call.dtype,
                        (float)call.scale);
            from_floats(call.key_row(call.grad_value, sequence, key_head, first + r),
                        block.grad_value + r * work.value_columns.padded(), call.value_dim,
                        call.dtype, 1.0f);
        }
    }
};

// The key heads of all sequences, in turns that run one after the other. In each turn the heads
// whose queries visited most come first, so that threads finish at about the same time.
static std::vector<int64_t> heads_by_work(const Call &call, int64_t turns, int64_t serial_heads) {
    int64_t pairs = call.sequences * call.key_heads, group = call.group();
    int64_t serial_sequences = turns / serial_heads;
    std::vector<int64_t> work(pairs, 0), order(pairs);
    for (int64_t pair = 0; pair < pairs; ++pair) {
        const int64_t *visits = call.visits + pair * group * call.visits_row;
        for (int64_t i = 0; i < group * call.visits_row; ++i) work[pair] += visits[i];
        order[pair] = pair;
    }
    auto turn_of = [&](int64_t pair) {
        int64_t sequence = pair / call.key_heads, head = pair % call.key_heads;
        return sequence % serial_sequences * serial_heads + head % serial_heads;
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        int64_t turn_a = turn_of(a), turn_b = turn_of(b);
        return turn_a != turn_b ? turn_a < turn_b : work[a] > work[b];
    });
    return order;
}

template <bool PAIRS> static int backward(const Call &call) {
    if (call.sequences == 0) return 0;
    thread_local Arena shared;
    BackwardWorkspace<PAIRS> shape(call);
    int64_t head_size = shape.padded_queries * shape.head_columns.padded();
    int64_t heads = call.sequences * call.heads;
    if (call.splits > 1 && !shared.reserve(call.splits * heads * head_size * 4)) return 1;
    float *partial = call.splits > 1 ? shared.take<float>(call.splits * heads * head_size) : nullptr;
    // Units that would write the same gradients of a shared bias run one after the other.
    bool pairs = call.grad_pairs.data;
    int64_t serial_sequences = pairs && call.grad_pairs.batch == 0 ? call.sequences : 1;
    int64_t serial_heads = pairs && call.grad_pairs.head == 0 ? call.key_heads : 1;
    int64_t turns = serial_sequences * serial_heads;
    int64_t units = call.sequences * call.key_heads / turns;
    std::vector<int64_t> order = heads_by_work(call, turns, serial_heads);
    int failed = 0;

#pragma omp parallel num_threads((int)call.threads)
    {
        thread_local Arena arena;
        BackwardWorkspace<PAIRS> work(call);
        bool ready = arena.reserve(work.bytes(call));
        if (ready) {
            work.allocate(call, arena);
        } else {
#pragma omp atomic write
            failed = 1;
        }
        for (int64_t turn = 0; turn < turns; ++turn) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < units * call.splits; ++task) {
                if (!ready) continue;
                int64_t pair = order[turn * units + task / call.splits];
                int64_t sequence = pair / call.key_heads, key_head = pair % call.key_heads;
                int64_t split = task % call.splits;
                BackwardUnit<PAIRS> unit(call, work, sequence, key_head, split);
                unit.run([&](int64_t head) {
                    if (!partial) return work.grad_query;
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
                BackwardUnit<PAIRS>::write_queries(call, shape.head_columns, head / call.heads,
                                                   head % call.heads, sums);
            }
        }
        arena.trim();
    }
    shared.trim();
    return failed;
}
