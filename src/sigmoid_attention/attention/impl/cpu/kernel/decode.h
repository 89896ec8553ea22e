// Decoding: a few queries against many keys, which are read where they are.
//
// Packing would cost more than attending does: a single query waits for memory alone. All queries
// that share a key head pass over its keys together, so that a key comes from memory once. Chunks
// of keys are dealt out to the threads; nothing is normalised, so a row is the sum of its chunks.
#pragma once
#include <atomic>
#include <new>

#include "in_place.h"

// Keys whose weighted values one task sums up. Their number is fixed, so that a row has the same
// bits with any number of threads and beside any other sequences.
constexpr int64_t CHUNK_BLOCKS = 8, CHUNK_KEYS = CHUNK_BLOCKS * BLOCK_KEYS;

// The chunks that hold a key which some query sees.
struct Chunks {
    std::vector<int64_t> before;  // a sequence: in all heads of the sequences before it
    int64_t keys = 0;             // seen, in all

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
    // A head without keys has a chunk of none: its rows are to become zeros. Without rows it has none.
    static int64_t of_head(const Call &call, int64_t sequence) {
        if (call.queries_of(sequence) == 0) return 0;
        int64_t end = parts(call.keys_of(sequence), CHUNK_KEYS);
        return std::max<int64_t>(end - first(call, sequence), 1);
    }
};

template <DataType T> struct DecodeRoom {
    int64_t rows, query_row, out_row;
    Word *query;
    char *zeros;
    float *scores, *extra, *sums;
    QueryBlock *blocks;  // of each head in the group

    explicit DecodeRoom(const Call &call)
        : rows(call.group() * call.queries), query_row(row_words<PAIRED<T>>(call.head_dim)),
          out_row(round_up(call.value_dim, READ<T>)) {}

    template <class Take> void each(const Call &call, Take take) {
        take(query, rows * query_row);
        take(zeros, std::max(call.head_dim, call.value_dim) * SIZE<T>);
        take(scores, rows * SCORES_ROW);
        take(extra, call.queries * BLOCK_KEYS);
        take(sums, rows * out_row);
        take(blocks, call.group());
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
template <bool EXTRA, bool PAIRS>
static void weigh_rows(const Tile &tile, int64_t low, int64_t high, float *scores) {
    for (int64_t r = 0; r < tile.rows; ++r, scores += SCORES_ROW)
        for (int64_t c = low; c < high; c += PANEL) {
            Vector x[COLUMNS];
            for (int n = 0; n < COLUMNS; ++n) x[n] = load(scores + c + n * LANES);
            weigh<EXTRA, PAIRS, false>(x, tile, r, c, Slopes{});
            store_weights<PAIRS>((Word *)scores + words<PAIRS>(c), x);
        }
}

// sums = the weighted values of a chunk, for all rows that share a key head.
template <DataType T>
static void decode_chunk(const Call &call, DecodeRoom<T> &room, int64_t sequence, int64_t key_head,
                         int64_t chunk, float *sums) {
    room.take_queries(call, sequence, key_head);
    int64_t queries = call.queries_of(sequence), rows = call.group() * queries;
    std::memset(sums, 0, rows * room.out_row * 4);
    bool extra = call.softcap > 0 || differs_by_key(call);
    Places keys(call.head_dim * SIZE<T>), values(call.value_dim * SIZE<T>);
    int64_t seen = Chunks::first_key(call, sequence), all = call.keys_of(sequence);
    int64_t end = std::min((chunk + 1) * CHUNK_BLOCKS, parts(all, BLOCK_KEYS));
    for (int64_t j = std::max(chunk * CHUNK_BLOCKS, seen / BLOCK_KEYS); j < end; ++j) {
        int64_t first = j * BLOCK_KEYS, left = all - first;
        int64_t hidden = std::max<int64_t>(seen - first, 0);
        keys.find(call, call.key, sequence, key_head, first, hidden, left, room.zeros);
        values.find(call, call.value, sequence, key_head, first, hidden, left, room.zeros);
        int64_t low = hidden / PANEL * PANEL, high = round_up(std::min(left, BLOCK_KEYS), PANEL);
        in_steps<BATCH>(0, rows, [&](int64_t r, auto many) {
            multiply_keys<T, decltype(many)::value>(keys, low, high, call.head_dim,
                                                    room.query + r * room.query_row,
                                                    room.scores + r * SCORES_ROW);
        });
        float *scores = room.scores;
        for (int64_t member = 0; member < call.group(); ++member) {
            Tile tile(call, room.blocks[member], j, room.extra);
            (extra ? weigh_rows<true, PAIRED<T>> : weigh_rows<false, PAIRED<T>>)(tile, low, high,
                                                                                 scores);
            scores += queries * SCORES_ROW;
        }
        add_weighted<T>(values, low, high, call.value_dim, (const Word *)room.scores, rows, sums);
    }
}

// total = the sum of so many parts, of which it is the first. Single precision would lose digits:
// there are a thousand parts in a million keys.
static void add_up(float *total, int64_t many, int64_t size) {
    for (int64_t k = 0; k < size; k += LANES) {
        double sums[LANES] = {};
        for (int64_t part = 0; part < many; ++part)
            for (int i = 0; i < LANES; ++i) sums[i] += total[part * size + k + i];
        for (int i = 0; i < LANES; ++i) total[k + i] = (float)sums[i];
    }
}

// The answers of all rows that share a key head.
static void write_answers(const Call &call, int64_t sequence, int64_t key_head, const float *sums,
                          int64_t out_row) {
    // A certificate would need the norms of all keys, which cost as much as attending to them. To
    // visit all blocks is always right, and the backward pass leaves out what is hidden.
    int64_t visits = parts(call.keys_of(sequence), BLOCK_KEYS);
    int64_t blocks = call.visits_row;
    for (int64_t member = 0; member < call.group(); ++member) {
        int64_t head = key_head * call.group() + member;
        for (int64_t r = 0; r < call.queries_of(sequence); ++r, sums += out_row)
            from_floats(call.query_row(call.out, sequence, head, r), sums, call.value_dim,
                        call.dtype, 1.0f);
        if (call.visits)
            std::fill_n(call.visits + (sequence * call.heads + head) * blocks, blocks, visits);
    }
}

// Waking other threads costs more than this much work, in bytes of keys and values, once for every
// BATCH of rows.
constexpr int64_t SERIAL_BYTES = 256 << 10;
// What packing a key costs, in rows of the forward pass.
constexpr int64_t PACKING_ROWS = 24;

// Whether this is faster than the forward pass. That packs the keys, and then needs half the time
// for a row, but rounds the rows of every head up to ROWS. It is never so for more queries than the
// smallest block of queries has.
static bool decodes(const Call &call) {
    int64_t rows = call.group() * call.queries;
    return 2 * rows <= call.group() * round_up(call.queries, ROWS) + PACKING_ROWS;
}

template <DataType T> static int decode(const Call &call) {
    thread_local Arena shared;
    Chunks chunks(call);
    DecodeRoom<T> like(call);
    int64_t sums = like.rows * like.out_row;
    if (!shared.reserve(chunks.count() * sums * 4)) return 1;
    float *partial = shared.take<float>(chunks.count() * sums);
    std::vector<std::atomic<int64_t>> finished(call.sequences * call.key_heads);
    int64_t bytes = chunks.keys * (call.head_dim + call.value_dim) * SIZE<T>;
    bool shares = bytes * parts(like.rows, BATCH) > SERIAL_BYTES;
    int failed = 0;

#pragma omp parallel num_threads((int)call.threads) if (shares)
    {
        thread_local Arena arena;
        DecodeRoom<T> room(call);
        bool ready = arena.reserve(room.bytes(call));
        if (ready) {
            room.place(call, arena);
        } else {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t task = 0; task < chunks.count(); ++task) {
            if (!ready) continue;
            auto after = std::upper_bound(chunks.before.begin(), chunks.before.end(), task);
            int64_t sequence = after - chunks.before.begin() - 1;
            int64_t own = task - chunks.before[sequence], many = Chunks::of_head(call, sequence);
            int64_t key_head = own / many, chunk = Chunks::first(call, sequence) + own % many;
            decode_chunk<T>(call, room, sequence, key_head, chunk,
                            many > 1 ? partial + task * sums : room.sums);
            // Whoever comes last adds up, in the order of the chunks. To let all wait for all
            // instead would cost a call on a busy machine as much again as its end does.
            if (++finished[sequence * call.key_heads + key_head] < many) continue;
            float *total = many > 1 ? partial + (task - own % many) * sums : room.sums;
            if (many > 1) add_up(total, many, sums);
            write_answers(call, sequence, key_head, total, room.out_row);
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
