// The order in which a block of queries visits the keys, and when it may stop. attention/bounds.py
// has the proof; this is the same for one block of queries.
#pragma once
#include "memory.h"
#include "tile.h"

constexpr double NORM_SLACK = 0x1p-14;
constexpr double KEPT_SLACK = 0x1p-7;

// Blocks of keys from near to far. After any number of turns the visited blocks are contiguous.
struct Order {
    int64_t blocks, turn = 0;
    int64_t position, keys;  // of the first query; of the sequence
    int64_t next, near_end;  // the blocks that overlap the queries, ascending
    int64_t left, right;     // then the nearer side

    Order(const QueryBlock &block) : position(block.position), keys(block.keys) {
        blocks = parts(keys, BLOCK_KEYS);
        int64_t last_position = position + block.rows - 1;
        next = position < 0 ? 0 : position / BLOCK_KEYS;
        near_end = last_position < 0 ? 0 : last_position / BLOCK_KEYS + 1;
        if (near_end > blocks) near_end = blocks;
        left = next - 1;
        right = near_end;
        last = last_position;
    }

    bool more() const { return turn < blocks; }

    int64_t take() {
        ++turn;
        if (next < near_end) return next++;
        if (left < 0) return right++;
        if (right >= blocks) return left--;
        int64_t to_left = position - (left * BLOCK_KEYS + BLOCK_KEYS - 1);
        int64_t to_right = right * BLOCK_KEYS - last;
        return to_left <= to_right ? left-- : right++;
    }

    // After any number of turns: the visited blocks are first <= j < end.
    int64_t visited_first() const { return left + 1; }
    int64_t visited_end() const { return next < near_end ? next : right; }

  private:
    int64_t last;
};

// The largest number of a term over a range of queries and keys, or a NaN if there is one. Entries
// that hide a key (-inf) are not counted.
struct Range {
    double most = -INFINITY;
    bool hides_all = true;

    void include(float x) {
        if (x == -INFINITY) return;
        hides_all = false;
        most = larger(most, x);
    }
};

static Range range_of(const Term &term, const QueryBlock &block, int64_t key, int64_t keys) {
    Range range;
    int64_t offset = block.sequence * term.batch + block.head * term.head +
                    block.first * term.query + key * term.key;
    int64_t rows = term.query ? block.rows : 1, columns = term.key ? keys : 1;
    read_term(term, offset, [&](auto from, auto value) {
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c)
                range.include(value(from[r * term.query + c * term.key]));
    });
    return range;
}

static bool any_attended(const Flags &flags, const QueryBlock &block, int64_t key, int64_t keys) {
    const uint8_t *from = flags.data + block.sequence * flags.batch + block.head * flags.head +
                          block.first * flags.query + key * flags.key;
    int64_t rows = flags.query ? block.rows : 1, columns = flags.key ? keys : 1;
    for (int64_t r = 0; r < rows; ++r) {
        uint8_t any = 0;
        for (int64_t c = 0; c < columns; ++c) any |= from[r * flags.query + c * flags.key];
        if (any) return true;
    }
    return false;
}

// The most keys from `first` to `last` that one row of the block sees.
static int64_t most_visible(const Call &call, const QueryBlock &block, int64_t first, int64_t last) {
    auto visible_keys = [&](int64_t p) {
        int64_t from = call.left < 0 || p - call.left < first ? first : p - call.left;
        int64_t to = call.right < 0 || p + call.right > last ? last : p + call.right;
        return to < from ? 0 : to - from + 1;
    };
    int64_t top = block.position, bottom = top + block.rows - 1;
    int64_t most = std::max(visible_keys(top), visible_keys(bottom));
    // The count is concave in the position: its maximum is at an end or where its slope changes.
    for (int64_t p : {last - call.right, first + call.left})
        if (p > top && p < bottom) most = std::max(most, visible_keys(p));
    return most;
}

struct Certificate {
    int64_t count = 0;  // number of turns
    int64_t *blocks;    // of keys, in the order of the visit
    double *remaining;  // by turn: upper bound of the weights of the rest in a row
    double *squares;    // by turn: upper bound of the squares of its weights in a row
    bool *visible;      // by turn
    bool *may_stop;     // by turn: whether the rest could be small enough to skip
    bool needs_squares = false;  // whether rows sum the squares of their weights

    static int64_t bytes(int64_t longest) {
        return 3 * Arena::rounded(longest * 8) + 2 * Arena::rounded(longest);
    }

    void allocate(Arena &arena, int64_t longest) {
        blocks = arena.take<int64_t>(longest);
        remaining = arena.take<double>(longest);
        squares = arena.take<double>(longest);
        visible = arena.take<bool>(longest);
        may_stop = arena.take<bool>(longest);
    }

    // key_norms: the largest norm in each block of keys.
    void prepare(const Call &call, const QueryBlock &block, double query_norm,
                 const double *key_norms) {
        Order order(block);
        count = order.blocks;
        std::fill_n(visible, count, false);
        std::fill_n(remaining, count, 0.0);
        std::fill_n(squares, count, 0.0);
        std::fill_n(may_stop, count, false);
        needs_squares = false;
        for (int64_t t = 0; t < count; ++t) {
            int64_t j = blocks[t] = order.take();
            int64_t first = j * BLOCK_KEYS, last = std::min(first + BLOCK_KEYS, block.keys) - 1;
            int64_t most = most_visible(call, block, first, last);
            if (most > 0 && call.attend.data &&
                !any_attended(call.attend, block, first, last - first + 1))
                most = 0;
            if (most == 0) continue;
            double reach = query_norm * key_norms[j] * std::fabs(call.scale) * (1 + NORM_SLACK);
            if (call.softcap > 0) reach = call.softcap * std::tanh(reach / call.softcap);
            double above = reach + call.constant;
            bool hidden = false;
            for (const Term *term : {&call.bias, &call.mask}) {
                if (!term->data) continue;
                Range range = range_of(*term, block, first, last - first + 1);
                hidden |= range.hides_all;
                above += range.most;
            }
            if (hidden) continue;
            if (call.slopes) above -= least_penalty(call, block, first, last);
            visible[t] = true;
            double heaviest = std::exp(above > 0 ? 0.0 : above);
            remaining[t] = most * heaviest;
            squares[t] = remaining[t] * heaviest;
        }
        accumulate_bounds(call);
    }

    // least_kept: the smallest norm of a row's weights so far.
    bool stop(const Call &call, int64_t turn, double least_kept) const {
        if (!may_stop[turn]) return false;
        if (!call.relative) return true;
        return remaining[turn] <= call.tolerance * (1 - KEPT_SLACK) * least_kept;
    }

  private:
    static double least_penalty(const Call &call, const QueryBlock &block, int64_t first,
                                int64_t last) {
        int64_t low = block.position - last, high = block.position + block.rows - 1 - first;
        if (call.left >= 0) high = std::min(high, call.left);
        if (call.right >= 0) low = std::max(low, -call.right);
        int64_t nearest = std::max({low, -high, int64_t(0)});
        int64_t farthest = std::max(std::llabs(low), std::llabs(high));
        return std::min(double(block.slope) * nearest, double(block.slope) * farthest);
    }

    void accumulate_bounds(const Call &call) {
        double before = 0.0;
        for (int64_t t = 0; t < count; ++t) before += squares[t];
        double rest = 0.0;
        for (int64_t t = count - 1; t >= 0; --t) {
            // Upper bound of the squares that a row has summed before this turn.
            before -= squares[t];
            rest += remaining[t];
            remaining[t] = rest;
            if (call.tolerance > 0) {
                double limit = call.tolerance;
                // Twice the bound, for the rounding of these sums.
                if (call.relative) limit *= 2 * std::sqrt(std::max(before, 0.0));
                may_stop[t] = rest <= limit;
            }
        }
        for (int64_t t = 0; t < count; ++t)
            needs_squares |= call.relative && may_stop[t] && remaining[t] > 0;
    }
};
