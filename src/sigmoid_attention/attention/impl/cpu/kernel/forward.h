// The forward pass: blocks of queries against packed keys and values, in parallel over blocks.
#pragma once
#include <algorithm>
#include <vector>

#include "certificate.h"

// Keys and values of a key head in the forms that the micro-kernel reads.
template <bool PAIRS> struct PackedKeys {
    Word *panels, *steps;   // keys in panel form, values in step form
    double *norms;          // the largest key norm in each block
    int64_t key_words, value_steps;
    Columns value_columns;
    int64_t blocks;

    PackedKeys(const Call &call, int64_t longest)
        : key_words(words<PAIRS>(call.head_dim)), value_columns(call.value_dim),
          blocks(parts(longest, BLOCK_KEYS)) {
        value_steps = words<PAIRS>(blocks * BLOCK_KEYS);
    }

    int64_t panel_words() const { return blocks * BLOCK_KEYS * key_words; }
    int64_t step_words() const { return value_steps * value_columns.padded(); }
    int64_t bytes() const {
        return Arena::rounded(panel_words() * 4) + Arena::rounded(step_words() * 4) +
               Arena::rounded(blocks * 8);
    }

    void allocate(Arena &arena) {
        panels = arena.take<Word>(panel_words());
        steps = arena.take<Word>(step_words());
        norms = arena.take<double>(blocks);
    }

    // Words of the buffer in which `pack` brings a panel of rows into row form.
    static int64_t buffer_words(const Call &call) {
        return PANEL * row_words<PAIRS>(std::max(call.head_dim, call.value_dim));
    }

    void pack(const Call &call, int64_t sequence, int64_t head, int64_t block, Word *buffer) {
        int64_t keys = call.keys_of(sequence), first = block * BLOCK_KEYS;
        int64_t count = std::min(BLOCK_KEYS, keys - first);
        auto later = [&](int64_t row) { return std::min(first + row + AHEAD, keys - 1); };
        double most = 0.0;
        for (int64_t p = 0; p < count; p += PANEL) {
            int64_t rows = std::min<int64_t>(PANEL, count - p);
            int64_t stride = row_words<PAIRS>(call.head_dim);
            for (int64_t r = 0; r < rows; ++r) {
                const char *from = call.key_row(call.key, sequence, head, first + p + r);
                fetch_row(call.key_row(call.key, sequence, head, later(p + r)),
                          call.head_dim * call.element_size());
                pack_row<PAIRS>(buffer + r * stride, stride, from, call.head_dim, call.dtype);
                most = larger(most, row_norm<PAIRS>(buffer + r * stride, stride));
            }
            std::memset(buffer + rows * stride, 0, (PANEL - rows) * stride * 4);
            pack_panel(panels + (first + p) * key_words, buffer, stride, key_words);
            stride = row_words<PAIRS>(call.value_dim);
            for (int64_t r = 0; r < rows; ++r) {
                const char *from = call.key_row(call.value, sequence, head, first + p + r);
                fetch_row(call.key_row(call.value, sequence, head, later(p + r)),
                          call.value_dim * call.element_size());
                pack_row<PAIRS>(buffer + r * stride, stride, from, call.value_dim, call.dtype);
            }
            pack_steps<PAIRS>(steps, value_steps, words<PAIRS>(first + p), buffer, stride, rows,
                              value_columns);
        }
        norms[block] = most;
    }
};

// Words of a row of weights: floats, or pairs of keys. The padding spreads rows over the cache.
template <bool PAIRS> constexpr int64_t WEIGHTS_ROW = (PAIRS ? BLOCK_KEYS / 2 : BLOCK_KEYS) + 16;

template <bool PAIRS> static inline void store_weights(Word *to, const Vector (&w)[COLUMNS]) {
#if defined(__AVX512BF16__)
    if constexpr (PAIRS) {
        for (int n = 0; n < COLUMNS; n += 2) {
            __m512bh both = _mm512_cvtne2ps_pbh((__m512)w[n + 1], (__m512)w[n]);
            std::memcpy(to + n / 2 * LANES, &both, 64);
        }
        return;
    }
#endif
    for (int n = 0; n < COLUMNS; ++n) store(to + n * LANES, w[n]);
}

// Tiles that are summed in single precision; a longer sum would lose digits.
constexpr int64_t TILES_A_SUM = 16;

template <bool PAIRS> struct ForwardWorkspace {
    Word *query, *weights;
    float *out, *extra;
    double *total;    // the sum of all earlier sums in `out`
    Vector *squares;  // sum of the squares of each row's weights
    Vector *masses;   // sum of each row's weights
    double *mass_total;
    Certificate certificate;

    static int64_t bytes(const Call &call, int64_t blocks) {
        return Certificate::bytes(blocks) +
               Arena::rounded(BLOCK_QUERIES * row_words<PAIRS>(call.head_dim) * 4) +
               Arena::rounded(BLOCK_QUERIES * WEIGHTS_ROW<PAIRS> * 4) +
               Arena::rounded(BLOCK_QUERIES * Columns(call.value_dim).padded() * 4) +
               Arena::rounded(BLOCK_QUERIES * Columns(call.value_dim).padded() * 8) +
               Arena::rounded(BLOCK_QUERIES * BLOCK_KEYS * 4) +
               2 * Arena::rounded(BLOCK_QUERIES * sizeof(Vector)) +
               Arena::rounded(BLOCK_QUERIES * 8);
    }

    void allocate(const Call &call, Arena &arena, int64_t blocks) {
        certificate.allocate(arena, blocks);
        query = arena.take<Word>(BLOCK_QUERIES * row_words<PAIRS>(call.head_dim));
        weights = arena.take<Word>(BLOCK_QUERIES * WEIGHTS_ROW<PAIRS>);
        out = arena.take<float>(BLOCK_QUERIES * Columns(call.value_dim).padded());
        total = arena.take<double>(BLOCK_QUERIES * Columns(call.value_dim).padded());
        extra = arena.take<float>(BLOCK_QUERIES * BLOCK_KEYS);
        squares = arena.take<Vector>(BLOCK_QUERIES);
        masses = arena.take<Vector>(BLOCK_QUERIES);
        mass_total = arena.take<double>(BLOCK_QUERIES);
    }

    // Start the next sum.
    void add_to_total(int64_t size, bool first) {
        for (int64_t k = 0; k < size; ++k) {
            total[k] = (first ? 0.0 : total[k]) + out[k];
            out[k] = 0.0f;
        }
    }

    void add_to_mass_total(int64_t rows) {
        for (int64_t r = 0; r < rows; ++r) {
            mass_total[r] += sum(masses[r]);
            masses[r] = Vector{};
        }
    }
};

template <bool PAIRS, int TERMS>
static inline __attribute__((always_inline)) void set_group_weights(
    const Tile &tile, int64_t g, int64_t c, const Word *query, int64_t query_row, const Word *panel,
    int64_t key_words, Word *weights, Vector *squares, Vector *masses) {
    Vector x[ROWS][COLUMNS] = {};
    multiply<PAIRS, COLUMNS>(x, query + g * ROWS * query_row, query_row, 1, panel, PANEL, key_words);
#pragma GCC unroll 6
    for (int m = 0; m < ROWS; ++m) {
        int64_t r = g * ROWS + m;
        set_weights<TERMS, PAIRS, false>(x[m], tile, r, c, Derivatives{});
        if (TERMS != PLAIN && squares)
            for (int n = 0; n < COLUMNS; ++n) squares[r] += x[m][n] * x[m][n];
        if (masses) {
            Vector total = x[m][0];
            for (int n = 1; n < COLUMNS; ++n) total += x[m][n];
            masses[r] += total;
        }
        store_weights<PAIRS>(weights + r * WEIGHTS_ROW<PAIRS> + words<PAIRS>(c), x[m]);
        one_after_another();
    }
}

// `next`: what is read after this tile's keys.
template <bool PAIRS, int TERMS>
static void set_tile_weights(const Tile &tile, const Word *query, int64_t query_row,
                             const Word *panels, int64_t key_words, Word *weights,
                             Vector *squares, Vector *masses, const Word *next) {
    // If only a window cuts the tile, most groups see all of a panel.
    const bool may_be_plain = TERMS == GENERAL && tile.slope == 0 && !squares;
    for (int64_t c = 0; c < tile.columns; c += PANEL) {
        const Word *panel = panels + c * key_words;
        bool last = c + PANEL >= tile.columns;
        Prefetcher later(last ? next : panel + PANEL * key_words, PANEL * key_words, tile.groups());
        for (int64_t g = 0; g < tile.groups(); ++g) {
            later.fetch_part();
            if (tile.group_first[g] >= c + PANEL || tile.group_last[g] <= c) continue;
            if (may_be_plain && tile.group_sees(g, c, c + PANEL))
                set_group_weights<PAIRS, PLAIN>(tile, g, c, query, query_row, panel, key_words,
                                                weights, nullptr, masses);
            else
                set_group_weights<PAIRS, TERMS>(tile, g, c, query, query_row, panel, key_words,
                                                weights, squares, masses);
        }
    }
}

// The address of the values of the keys from `key` on, in a panel of columns.
template <bool PAIRS>
static const Word *values_at(const PackedKeys<PAIRS> &packed, int64_t key, int64_t panel) {
    int64_t width = packed.value_columns.vectors_in(panel) * LANES;
    return packed.steps + panel_start(panel, packed.value_steps) + words<PAIRS>(key) * width;
}

template <bool PAIRS>
static void add_values(const Tile &tile, const PackedKeys<PAIRS> &packed, const Word *weights,
                       float *out, const Word *next) {
    Columns columns = packed.value_columns;
    for (int64_t panel = 0; panel < columns.panels(); ++panel) {
        int vectors = columns.vectors_in(panel);
        int64_t width = vectors * LANES;
        const Word *values = values_at(packed, tile.first_key, panel);
        bool last = panel + 1 == columns.panels();
        Prefetcher later = last ? Prefetcher(next, PANEL * packed.key_words, tile.groups())
                           : Prefetcher(values_at(packed, tile.first_key, panel + 1),
                                   words<PAIRS>(BLOCK_KEYS) * width, tile.groups());
        for (int64_t g = 0; g < tile.groups(); ++g) {
            later.fetch_part();
            if (tile.group_last[g] <= tile.group_first[g]) continue;
            int64_t from = PAIRS ? tile.group_first[g] / 2 : tile.group_first[g];
            int64_t to = words<PAIRS>(tile.group_last[g]);
            accumulate<PAIRS>(vectors, out + g * ROWS * columns.padded() + panel * PANEL,
                              columns.padded(), weights + g * ROWS * WEIGHTS_ROW<PAIRS> + from,
                              WEIGHTS_ROW<PAIRS>, 1, values + from * width, width, to - from);
        }
    }
}

template <bool PAIRS>
static void forward_block(const Call &call, ForwardWorkspace<PAIRS> &work,
                          const PackedKeys<PAIRS> &packed, int64_t sequence, int64_t head,
                          int64_t i) {
    QueryBlock block(call, sequence, head, i, LOGIT_UNIT<PAIRS>);
    int64_t stride = row_words<PAIRS>(call.head_dim), out_row = packed.value_columns.padded();
    int64_t padded_rows = round_up(block.rows, ROWS);
    double query_norm = 0.0;
    for (int64_t r = 0; r < block.rows; ++r) {
        Word *row = work.query + r * stride;
        const char *from = call.query_row(call.query, sequence, head, block.first + r);
        int64_t later = block.first + std::min(r + AHEAD, block.rows - 1);
        fetch_row(call.query_row(call.query, sequence, head, later),
                  call.head_dim * call.element_size());
        pack_row<PAIRS>(row, stride, from, call.head_dim, call.dtype);
        query_norm = larger(query_norm, row_norm<PAIRS>(row, stride));
    }
    std::memset(work.query + block.rows * stride, 0, (padded_rows - block.rows) * stride * 4);
    std::memset(work.out, 0, padded_rows * out_row * 4);
    std::memset(work.squares, 0, padded_rows * sizeof(Vector));
    Vector *masses = call.mass.data ? work.masses : nullptr;
    if (masses) {
        std::memset(work.masses, 0, padded_rows * sizeof(Vector));
        std::memset(work.mass_total, 0, padded_rows * 8);
    }

    Certificate &certificate = work.certificate;
    certificate.prepare(call, block, query_norm, packed.norms);
    int64_t turns = certificate.count, turn = 0, tiles = 0;
    for (; turn < turns; ++turn) {
        if (certificate.may_stop[turn]) {
            double least = INFINITY;
            for (int64_t r = 0; certificate.needs_squares && r < block.rows; ++r)
                least = std::min(least, (double)sum(work.squares[r]));
            if (certificate.stop(call, turn, std::sqrt(least))) break;
        }
        if (!certificate.visible[turn]) continue;
        if (tiles && tiles % TILES_A_SUM == 0) {
            work.add_to_total(padded_rows * out_row, tiles == TILES_A_SUM);
            if (masses) work.add_to_mass_total(block.rows);
        }
        ++tiles;
        Tile tile(call, block, certificate.blocks[turn], work.extra);
        const Word *panels = packed.panels + tile.first_key * packed.key_words;
        Vector *squares = certificate.needs_squares ? work.squares : nullptr;
        auto set_all_weights = tile.has_extra()             ? set_tile_weights<PAIRS, EXTRA>
                         : squares || !tile.is_plain() ? set_tile_weights<PAIRS, GENERAL>
                                                    : set_tile_weights<PAIRS, PLAIN>;
        set_all_weights(tile, work.query, stride, panels, packed.key_words, work.weights, squares,
                        masses, values_at(packed, tile.first_key, 0));
        int64_t then = certificate.blocks[std::min(turn + 1, turns - 1)];
        add_values<PAIRS>(tile, packed, work.weights, work.out,
                          packed.panels + then * BLOCK_KEYS * packed.key_words);
    }
    if (call.visits) call.visits[(sequence * call.heads + head) * call.visits_row + i] = turn;
    for (int64_t k = 0; tiles > TILES_A_SUM && k < padded_rows * out_row; ++k)
        work.out[k] = (float)(work.total[k] + work.out[k]);
    for (int64_t r = 0; r < block.rows; ++r)
        from_floats(call.query_row(call.out, sequence, head, block.first + r),
                    work.out + r * out_row, call.value_dim, call.dtype, 1.0f);
    if (!masses) return;
    work.add_to_mass_total(block.rows);
    for (int64_t r = 0; r < block.rows; ++r)
        *call.query_mass(call.mass, sequence, head, block.first + r) = (float)work.mass_total[r];
}

// Packed keys of one chunk of heads, which stay in the cache.
constexpr int64_t CHUNK_BYTES = int64_t(4) << 20;

template <bool PAIRS> static int forward(const Call &call) {
    thread_local Arena shared;
    int64_t longest = 0;
    for (int64_t s = 0; s < call.sequences; ++s) longest = std::max(longest, call.keys_of(s));
    PackedKeys<PAIRS> shape(call, longest);
    int64_t pairs = call.sequences * call.key_heads;
    int64_t fitting = std::max<int64_t>(CHUNK_BYTES / std::max<int64_t>(shape.bytes(), 1), 1);
    int64_t chunk = std::min(fitting, pairs);
    if (!shared.reserve(chunk * shape.bytes())) return 1;
    std::vector<PackedKeys<PAIRS>> packed(chunk, shape);
    for (PackedKeys<PAIRS> &heads_keys : packed) heads_keys.allocate(shared);
    int64_t blocks = parts(call.queries, call.block_queries), group = call.group();
    int failed = 0;

#pragma omp parallel num_threads((int)call.threads)
    {
        thread_local Arena arena;
        int64_t row_bytes = Arena::rounded(PackedKeys<PAIRS>::buffer_words(call) * 4);
        bool ready = arena.reserve(ForwardWorkspace<PAIRS>::bytes(call, shape.blocks) + row_bytes);
        if (!ready) {
#pragma omp atomic write
            failed = 1;
        }
        ForwardWorkspace<PAIRS> work;
        Word *rows = nullptr;
        if (ready) {
            work.allocate(call, arena, shape.blocks);
            rows = arena.take<Word>(PackedKeys<PAIRS>::buffer_words(call));
        }
        for (int64_t start = 0; start < pairs; start += chunk) {
            int64_t many = std::min(chunk, pairs - start);
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < many * shape.blocks; ++task) {
                int64_t pair = task / shape.blocks, block = task % shape.blocks;
                int64_t sequence = (start + pair) / call.key_heads;
                if (!ready || block * BLOCK_KEYS >= call.keys_of(sequence)) continue;
                packed[pair].pack(call, sequence, (start + pair) % call.key_heads, block, rows);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < many * group * blocks; ++task) {
                // The longest tasks first: causal blocks from the last one on, others in order.
                int64_t turn = task % blocks, rest = task / blocks;
                int64_t i = call.right < 0 ? turn : blocks - 1 - turn;
                int64_t pair = rest / group;
                int64_t sequence = (start + pair) / call.key_heads;
                int64_t head = (start + pair) % call.key_heads * group + rest % group;
                if (!ready || i * call.block_queries >= call.queries_of(sequence)) continue;
                forward_block<PAIRS>(call, work, packed[pair], sequence, head, i);
            }
        }
        arena.trim();
    }
    shared.trim();
    return failed;
}
