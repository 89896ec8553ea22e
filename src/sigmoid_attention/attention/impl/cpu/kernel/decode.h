// Decoding: a few queries against many keys, which are read without packing.
//
// Packing would take longer than the products: for a single query the memory is the limit. All
// queries that share a key head are processed together, so that a key is read from memory once.
// Threads take chunks of keys. Nothing is normalised, so a row is the sum of its chunks.
#pragma once
#include <atomic>
#include <new>

#include "in_place.h"

// Keys of a task. The number is fixed, so that a row has the same bits with any number of threads
// and beside any other sequences.
constexpr int64_t CHUNK_BLOCKS = 8, CHUNK_KEYS = CHUNK_BLOCKS * BLOCK_KEYS;

// The chunks with a key that is visible to a query.
struct Chunks {
    std::vector<int64_t> before;  // for each sequence: chunks of all sequences before it
    int64_t keys = 0;             // number of visible keys

    explicit Chunks(const Call &call) : before(call.sequences + 1) {
        for (int64_t s = 0; s < call.sequences; ++s) {
            before[s + 1] = before[s] + of_head(call, s) * call.key_heads;
            keys += (call.keys_of(s) - first_key(call, s)) * call.key_heads;
        }
    }

    int64_t count() const { return before.back(); }

    static int64_t first_key(const Call &call, int64_t sequence) {
        int64_t hidden = call.keys_of(sequence) - call.queries_of(sequence) - call.left;
        return call.left < 0 ? 0 : std::max<int64_t>(hidden, 0);
    }
    static int64_t first(const Call &call, int64_t sequence) {
        return first_key(call, sequence) / CHUNK_KEYS;
    }
    // A head without keys has one empty chunk, which sets its rows to zero; without rows none.
    static int64_t of_head(const Call &call, int64_t sequence) {
        if (call.queries_of(sequence) == 0) return 0;
        int64_t end = parts(call.keys_of(sequence), CHUNK_KEYS);
        return std::max<int64_t>(end - first(call, sequence), 1);
    }
};

template <DataType T> struct DecodeWorkspace {
    int64_t rows, query_row, out_row;
    int64_t sums_size;  // the rows of the output, then their masses if these are wanted
    Word *query;
    char *zeros;
    float *scores, *extra, *sums;
    QueryBlock *blocks;  // of each head in the group

    explicit DecodeWorkspace(const Call &call)
        : rows(call.group() * call.queries), query_row(row_words<PAIRED<T>>(call.head_dim)),
          out_row(round_up(call.value_dim, READ<T>)),
          sums_size(rows * out_row + (call.mass.data ? round_up(rows, LANES) : 0)) {}

    float *masses(const Call &call, float *sums) const {
        return call.mass.data ? sums + rows * out_row : nullptr;
    }

    template <class Take> void for_each_array(const Call &call, Take take) {
        take(query, rows * query_row);
        take(zeros, std::max(call.head_dim, call.value_dim) * SIZE<T>);
        take(scores, rows * SCORES_ROW);
        take(extra, call.queries * BLOCK_KEYS);
        take(sums, sums_size);
        take(blocks, call.group());
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
        std::memset(zeros, 0, std::max(call.head_dim, call.value_dim) * SIZE<T>);
    }

    void take_queries(const Call &call, int64_t sequence, int64_t key_head) {
        Word *row = query;
        for (int64_t member = 0; member < call.group(); ++member) {
            int64_t head = key_head * call.group() + member;
            new (blocks + member) QueryBlock(call, sequence, head, 0, LOGIT_UNIT<PAIRED<T>>);
            for (int64_t r = 0; r < call.queries_of(sequence); ++r, row += query_row)
                pack_row<PAIRED<T>>(row, query_row, call.query_row(call.query, sequence, head, r),
                                    call.head_dim, call.dtype);
        }
    }
};

// From products to weights, in place, for all queries of a head and the columns `low` to `high`.
// Adds the sum of a row's weights to its mass, if it is wanted.
template <bool EXTRA, bool PAIRS>
static void set_row_weights(const Tile &tile, int64_t low, int64_t high, float *scores,
                            float *masses) {
    for (int64_t r = 0; r < tile.rows; ++r, scores += SCORES_ROW) {
        Vector total{};
        for (int64_t c = low; c < high; c += PANEL) {
            Vector x[COLUMNS];
            for (int n = 0; n < COLUMNS; ++n) x[n] = load(scores + c + n * LANES);
            set_weights<EXTRA, PAIRS, false>(x, tile, r, c, Derivatives{});
            if (masses)
                for (int n = 0; n < COLUMNS; ++n) total += x[n];
            store_weights<PAIRS>((Word *)scores + words<PAIRS>(c), x);
        }
        if (masses) masses[r] += sum(total);
    }
}

// sums = the weighted values of a chunk, and the masses, for all rows that share a key head.
template <DataType T>
static void decode_chunk(const Call &call, DecodeWorkspace<T> &work, int64_t sequence,
                         int64_t key_head, int64_t chunk, float *sums) {
    work.take_queries(call, sequence, key_head);
    int64_t queries = call.queries_of(sequence), rows = call.group() * queries;
    std::memset(sums, 0, work.sums_size * 4);
    bool extra = call.softcap > 0 || differs_by_key(call);
    RowPointers keys(call.head_dim * SIZE<T>), values(call.value_dim * SIZE<T>);
    int64_t first_seen = Chunks::first_key(call, sequence), all = call.keys_of(sequence);
    int64_t end = std::min((chunk + 1) * CHUNK_BLOCKS, parts(all, BLOCK_KEYS));
    for (int64_t j = std::max(chunk * CHUNK_BLOCKS, first_seen / BLOCK_KEYS); j < end; ++j) {
        int64_t first = j * BLOCK_KEYS, left = all - first;
        int64_t hidden = std::max<int64_t>(first_seen - first, 0);
        keys.locate(call, call.key, sequence, key_head, first, hidden, left, work.zeros);
        values.locate(call, call.value, sequence, key_head, first, hidden, left, work.zeros);
        int64_t low = hidden / PANEL * PANEL, high = round_up(std::min(left, BLOCK_KEYS), PANEL);
        in_steps<BATCH>(0, rows, [&](int64_t r, auto many) {
            multiply_keys<T, decltype(many)::value>(keys, low, high, call.head_dim,
                                                    work.query + r * work.query_row,
                                                    work.scores + r * SCORES_ROW);
        });
        float *scores = work.scores, *masses = work.masses(call, sums);
        for (int64_t member = 0; member < call.group(); ++member) {
            Tile tile(call, work.blocks[member], j, work.extra);
            auto set_all = extra ? set_row_weights<true, PAIRED<T>>
                                 : set_row_weights<false, PAIRED<T>>;
            set_all(tile, low, high, scores, masses);
            scores += queries * SCORES_ROW;
            if (masses) masses += queries;
        }
        add_weighted<T>(values, low, high, call.value_dim, (const Word *)work.scores, rows, sums);
    }
}

// total = the sum of `many` parts, of which it is the first. Single precision would lose digits:
// a million keys have a thousand parts.
static void sum_parts(float *total, int64_t many, int64_t size) {
    for (int64_t k = 0; k < size; k += LANES) {
        double sums[LANES] = {};
        for (int64_t part = 0; part < many; ++part)
            for (int i = 0; i < LANES; ++i) sums[i] += total[part * size + k + i];
        for (int i = 0; i < LANES; ++i) total[k + i] = (float)sums[i];
    }
}

// The outputs of all rows that share a key head, and their masses, if these are wanted.
static void write_outputs(const Call &call, int64_t sequence, int64_t key_head, const float *sums,
                          int64_t out_row, const float *masses) {
    // A certificate would need the norms of all keys, which take as long as the products. To visit
    // all blocks is always right, and the backward pass skips the hidden ones.
    int64_t visits = parts(call.keys_of(sequence), BLOCK_KEYS);
    int64_t blocks = call.visits_row;
    for (int64_t member = 0; member < call.group(); ++member) {
        int64_t head = key_head * call.group() + member;
        for (int64_t r = 0; r < call.queries_of(sequence); ++r, sums += out_row) {
            from_floats(call.query_row(call.out, sequence, head, r), sums, call.value_dim,
                        call.dtype, 1.0f);
            if (masses) *call.query_mass(call.mass, sequence, head, r) = *masses++;
        }
        if (call.visits)
            std::fill_n(call.visits + (sequence * call.heads + head) * blocks, blocks, visits);
    }
}

// Below this amount of work other threads are not started: bytes of keys and values, for every
// BATCH of rows.
constexpr int64_t SERIAL_BYTES = 256 << 10;
// The cost of packing a key, in rows of the forward pass.
constexpr int64_t PACKING_ROWS = 24;

// Whether decoding is faster than the forward pass. That packs the keys, then takes half the time
// for a row, but rounds the rows of every head up to ROWS. This never holds for more queries than
// the smallest block of queries has.
static bool decodes(const Call &call) {
    int64_t rows = call.group() * call.queries;
    return 2 * rows <= call.group() * round_up(call.queries, ROWS) + PACKING_ROWS;
}

template <DataType T> static int decode(const Call &call) {
    thread_local Arena shared;
    Chunks chunks(call);
    DecodeWorkspace<T> shape(call);
    int64_t sums = shape.sums_size;
    if (!shared.reserve(chunks.count() * sums * 4)) return 1;
    float *partial = shared.take<float>(chunks.count() * sums);
    std::vector<std::atomic<int64_t>> finished(call.sequences * call.key_heads);
    int64_t bytes = chunks.keys * (call.head_dim + call.value_dim) * SIZE<T>;
    bool shares = bytes * parts(shape.rows, BATCH) > SERIAL_BYTES;
    int failed = 0;

#pragma omp parallel num_threads((int)call.threads) if (shares)
    {
        thread_local Arena arena;
        DecodeWorkspace<T> work(call);
        bool ready = arena.reserve(work.bytes(call));
        if (ready) {
            work.allocate(call, arena);
        } else {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < chunks.count(); ++task) {
            if (!ready) continue;
            auto after = std::upper_bound(chunks.before.begin(), chunks.before.end(), task);
            int64_t sequence = after - chunks.before.begin() - 1;
            int64_t index = task - chunks.before[sequence], many = Chunks::of_head(call, sequence);
            int64_t key_head = index / many, chunk = Chunks::first(call, sequence) + index % many;
            decode_chunk<T>(call, work, sequence, key_head, chunk,
                            many > 1 ? partial + task * sums : work.sums);
            // The thread that finishes last adds the chunks in their order. A barrier instead would
            // be slow on a busy machine.
            if (++finished[sequence * call.key_heads + key_head] < many) continue;
            float *total = many > 1 ? partial + (task - index % many) * sums : work.sums;
            if (many > 1) sum_parts(total, many, sums);
            write_outputs(call, sequence, key_head, total, work.out_row, work.masses(call, total));
        }
        arena.trim();
    }
    shared.trim();
    return failed;
}

static int decode(const Call &call) {
    if (call.dtype == FLOAT32) return decode<FLOAT32>(call);
    return call.dtype == BFLOAT16 ? decode<BFLOAT16>(call) : decode<FLOAT16>(call);
}
