// The product of each query with the mean of the keys that it sees, and its gradients; and the bias
// of centred keys in a decoding step, from the sum of the keys before it.
//
// With V_i the keys in query i's window and n_i their number, t_i = s q_i . sum_{j in V_i} k_j / n_i.
// For a gradient g of t, dq_i = g_i s sum_{j in V_i} k_j / n_i and dk_j = sum_{i: j in V_i} g_i s q_i
// / n_i. From one query to the next, and from one key to the next, few rows enter or leave such a
// sum: every pass reads each row once or twice.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "call.h"
#include "pack.h"

struct MeanCall {
    int64_t dtype, threads;
    int64_t sequences, heads, key_heads, queries, keys, head_dim;
    int64_t left, right;  // the window, -1 for no limit
    Rows query, key;
    float *products;             // (sequence, head, query), contiguous
    const float *grad_products;  // likewise; backward pass only
    Rows grad_query, grad_key;
    double scale;

    int64_t group() const { return heads / key_heads; }
    const char *row(const Rows &rows, int64_t sequence, int64_t head, int64_t i) const {
        int64_t size = dtype == FLOAT32 ? 4 : 2;
        return rows.data + (sequence * rows.batch + head * rows.head + i * rows.row) * size;
    }
    int64_t first_key(int64_t i) const {
        return left < 0 ? 0 : within(i + keys - queries - left, keys);
    }
    int64_t last_key(int64_t i) const {  // the one after it
        return right < 0 ? keys : std::max(first_key(i), within(i + keys - queries + right + 1, keys));
    }
    int64_t first_query(int64_t j) const {
        return right < 0 ? 0 : within(j - right - (keys - queries), queries);
    }
    int64_t last_query(int64_t j) const {  // the one after it
        return left < 0 ? queries
                        : std::max(first_query(j), within(j + left - (keys - queries) + 1, queries));
    }
    double factor(int64_t i) const {
        return scale / (double)std::max<int64_t>(1, last_key(i) - first_key(i));
    }

  private:
    static int64_t within(int64_t n, int64_t most) { return std::min(std::max<int64_t>(n, 0), most); }
};

// A weighted sum of rows that enter and leave, in double precision, so that what leaves cancels. A
// row with an infinity or a NaN is counted and not added: it could not leave again.
struct RunningSum {
    int64_t dim, padded, unknown = 0;
    std::vector<double> total;
    std::vector<float> row, result;

    explicit RunningSum(int64_t dim)
        : dim(dim), padded(round_up(dim, LANES)), total(padded), row(padded), result(padded) {}

    void clear() {
        std::fill(total.begin(), total.end(), 0.0);
        unknown = 0;
    }

    // sign: 1 where the row enters, -1 where it leaves.
    void add(const char *from, int64_t dtype, double weight, int sign) {
        to_floats(row.data(), from, dim, dtype);
        Vector zeros{};
        for (int64_t c = 0; c < padded; c += LANES) zeros += load(row.data() + c) * 0.0f;
        if (sum(zeros) != 0.0f || !std::isfinite(weight)) {
            unknown += sign;
            return;
        }
        weight *= sign;
        for (int64_t c = 0; c < padded; ++c) total[c] += weight * row[c];
    }

    // The sum times a factor, in `result`; NaN while an unknown row is in it.
    const float *times(double factor) {
        if (unknown) factor = NAN;
        for (int64_t c = 0; c < padded; ++c) result[c] = (float)(factor * total[c]);
        return result.data();
    }

    float dot(const char *from, int64_t dtype) {
        to_floats(row.data(), from, dim, dtype);
        Vector products{};
        for (int64_t c = 0; c < padded; c += LANES)
            products += load(row.data() + c) * load(result.data() + c);
        return sum(products);
    }
};

// Calls visit(i, keys) for every query, with the sum of the keys that it sees.
template <class Visit>
static void for_each_mean(const MeanCall &call, RunningSum &keys, int64_t sequence,
                          int64_t key_head, Visit visit) {
    auto key = [&](int64_t j) { return call.row(call.key, sequence, key_head, j); };
    int64_t added = 0, removed = 0;
    keys.clear();
    for (int64_t i = 0; i < call.queries; ++i) {
        for (; added < call.last_key(i); ++added) keys.add(key(added), call.dtype, 1.0, 1);
        for (; removed < call.first_key(i); ++removed) keys.add(key(removed), call.dtype, 1.0, -1);
        if (added == removed) keys.clear();
        keys.times(call.factor(i));
        visit(i, keys);
    }
}

static void mean_products(const MeanCall &call, RunningSum &keys, int64_t sequence,
                          int64_t key_head) {
    for_each_mean(call, keys, sequence, key_head, [&](int64_t i, RunningSum &mean) {
        for (int64_t head = key_head * call.group(); head < (key_head + 1) * call.group(); ++head)
            call.products[(sequence * call.heads + head) * call.queries + i] =
                mean.dot(call.row(call.query, sequence, head, i), call.dtype);
    });
}

static void mean_gradients(const MeanCall &call, RunningSum &rows, int64_t sequence,
                           int64_t key_head) {
    int64_t first_head = key_head * call.group(), last_head = first_head + call.group();
    auto gradient = [&](int64_t head, int64_t i) {
        return call.grad_products[(sequence * call.heads + head) * call.queries + i];
    };
    for_each_mean(call, rows, sequence, key_head, [&](int64_t i, RunningSum &mean) {
        for (int64_t head = first_head; head < last_head; ++head)
            from_floats(const_cast<char *>(call.row(call.grad_query, sequence, head, i)),
                        mean.result.data(), call.head_dim, call.dtype, gradient(head, i));
    });
    auto add_queries = [&](int64_t i, int sign) {
        for (int64_t head = first_head; head < last_head; ++head)
            rows.add(call.row(call.query, sequence, head, i), call.dtype,
                     gradient(head, i) * call.factor(i), sign);
    };
    // From the last key on, so that under causality queries enter and none leaves.
    int64_t first = call.queries, last = call.queries;
    rows.clear();
    for (int64_t j = call.keys - 1; j >= 0; --j) {
        while (first > call.first_query(j)) add_queries(--first, 1);
        while (last > call.last_query(j)) add_queries(--last, -1);
        if (first == last) rows.clear();
        from_floats(const_cast<char *>(call.row(call.grad_key, sequence, key_head, j)),
                    rows.times(1.0), call.head_dim, call.dtype, 1.0f);
    }
}

// The working arrays are allocated before the threads start, because a thread must not throw.
template <class Pass> static int for_each_head(const MeanCall &call, Pass pass) {
    int64_t heads = call.sequences * call.key_heads;
    int64_t threads = std::max<int64_t>(1, std::min(call.threads, heads));
    std::vector<RunningSum> sums(threads, RunningSum(call.head_dim));
#pragma omp parallel for num_threads((int)threads) schedule(static, 1)
    for (int64_t thread = 0; thread < threads; ++thread)
        for (int64_t head = thread; head < heads; head += threads)
            pass(call, sums[thread], head / call.key_heads, head % call.key_heads);
    return 0;
}

// A decoding step: each key head has a new key and, under a full window, one that leaves.
struct NextBiasCall {
    int64_t dtype, sequences, heads, key_heads, head_dim;
    Rows query, entering, leaving;  // one row a head; leaving is null where no key leaves
    double *sums;                   // (sequence, key head, head dim), to which the step is added
    const float *strength, *offset; // one number a head
    float *bias;                    // (sequence, head): offset - strength * factor * q . sum
    double factor;                  // the scale by the number of keys

    const char *row(const Rows &rows, int64_t sequence, int64_t head) const {
        int64_t size = dtype == FLOAT32 ? 4 : 2;
        return rows.data + (sequence * rows.batch + head * rows.head) * size;
    }
};

static int next_bias(const NextBiasCall &call) {
    int64_t dim = call.head_dim, padded = round_up(dim, LANES), group = call.heads / call.key_heads;
    std::vector<float> row(padded), mean(padded);
    if (call.leaving.data)  // these rows are old: all reads from memory start at once
        for (int64_t head = 0; head < call.sequences * call.key_heads; ++head)
            __builtin_prefetch(call.row(call.leaving, head / call.key_heads, head % call.key_heads));
    for (int64_t head = 0; head < call.sequences * call.key_heads; ++head) {
        int64_t sequence = head / call.key_heads, key_head = head % call.key_heads;
        double *sums = call.sums + head * dim;
        to_floats(row.data(), call.row(call.entering, sequence, key_head), dim, call.dtype);
        for (int64_t c = 0; c < dim; ++c) sums[c] += row[c];
        if (call.leaving.data) {
            to_floats(row.data(), call.row(call.leaving, sequence, key_head), dim, call.dtype);
            for (int64_t c = 0; c < dim; ++c) sums[c] -= row[c];
        }
        for (int64_t c = 0; c < dim; ++c) mean[c] = (float)(sums[c] * call.factor);
        for (int64_t own = key_head * group; own < (key_head + 1) * group; ++own) {
            to_floats(row.data(), call.row(call.query, sequence, own), dim, call.dtype);
            Vector products{};
            for (int64_t c = 0; c < padded; c += LANES)
                products += load(row.data() + c) * load(mean.data() + c);
            call.bias[sequence * call.heads + own] =
                call.offset[own] - call.strength[own] * sum(products);
        }
    }
    return 0;
}
