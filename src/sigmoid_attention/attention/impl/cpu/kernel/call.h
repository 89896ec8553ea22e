// The argument block of a call: pointers, strides and settings.
//
// ../abi.py describes the same struct and fills it; a test compares all offsets. Every integer is
// an int64 and every real number a double, so that the layout is the same for every compiler.
#pragma once
#include <cstdint>

enum DataType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// A tensor (batch, head, row, dim), strides in elements; the elements of a row are contiguous.
struct Rows {
    char *data;
    int64_t batch, head, row;
};

// A term that broadcasts to (batch, head, query, key); the stride of a broadcast dimension is 0.
struct Term {
    const char *data;
    int64_t batch, head, query, key;
    int64_t dtype;
};

// The gradient of a term.
struct TermGradient {
    float *data;
    int64_t batch, head, query, key;
};

struct Flags {
    const uint8_t *data;
    int64_t batch, head, query, key;
};

struct Call {
    int64_t dtype, threads;
    int64_t sequences, heads, key_heads, queries, keys, head_dim, value_dim;
    int64_t left, right;  // the window, -1 for no limit
    int64_t block_queries, relative;

    Rows query, key, value, out;
    Rows mass;  // in floats, one for each row: the sum of its weights; null if it is not wanted
    Term bias, mask;  // both are added to the logit; -inf in the mask hides
    Flags attend;     // the boolean mask
    const float *slopes;
    int64_t slopes_batch, slopes_head;

    // Null for a dense call, in which every sequence has all queries and all keys.
    const int64_t *start_q, *length_q, *start_k, *length_k;
    const int64_t *block_table;  // null unless keys are in pages of page_size tokens
    int64_t block_table_row, page_size;

    // (sequence, head, query block): the number of visited key blocks; rows lie visits_row apart.
    // Null without a backward pass.
    int64_t *visits, visits_row;

    // Backward pass only. A null pointer means that the gradient is not wanted.
    Rows grad_out, grad_query, grad_key, grad_value, grad_mass;
    int64_t splits;       // parts into which the keys of a head are divided
    float *grad_rows;     // (sequence, head, split, query): gradient of a bias per row, in parts
    float *grad_columns;  // (sequence, head, key): gradient of a bias per key
    TermGradient grad_pairs;  // gradient of a bias per pair
    double *grad_slopes;  // (sequence, head, split): gradient of a slope, in parts

    double scale, constant;  // constant is added to every logit
    double softcap;          // 0 for none
    double tolerance;        // 0 skips nothing that is visible

    // Whether no result has an element; then none may have memory, for any number of heads.
    bool output_is_empty() const {
        return sequences == 0 || heads == 0 || queries == 0 || (value_dim == 0 && !mass.data);
    }
    int64_t group() const { return heads / key_heads; }
    int64_t queries_of(int64_t sequence) const { return length_q ? length_q[sequence] : queries; }
    int64_t keys_of(int64_t sequence) const { return length_k ? length_k[sequence] : keys; }
    int64_t element_size() const { return dtype == FLOAT32 ? 4 : 2; }

    // Row i of a head in a tensor of queries (query, out and their gradients).
    char *query_row(const Rows &rows, int64_t sequence, int64_t head, int64_t i) const {
        if (start_q) i += start_q[sequence];
        return rows.data + (sequence * rows.batch + head * rows.head + i * rows.row) * element_size();
    }

    // The number of row i of a head in a tensor of masses (mass and its gradient).
    float *query_mass(const Rows &rows, int64_t sequence, int64_t head, int64_t i) const {
        if (start_q) i += start_q[sequence];
        float *floats = reinterpret_cast<float *>(rows.data);
        return floats + sequence * rows.batch + head * rows.head + i * rows.row;
    }

    // Row j of a head in a tensor of keys (key, value and their gradients).
    char *key_row(const Rows &rows, int64_t sequence, int64_t head, int64_t j) const {
        int64_t offset;
        if (block_table) {
            int64_t page = block_table[sequence * block_table_row + j / page_size];
            offset = page * rows.batch + (j % page_size) * rows.row;
        } else {
            if (start_k) j += start_k[sequence];
            offset = sequence * rows.batch + j * rows.row;
        }
        return rows.data + (offset + head * rows.head) * element_size();
    }
};
