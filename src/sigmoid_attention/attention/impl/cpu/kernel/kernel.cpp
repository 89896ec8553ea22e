// Fused sigmoid attention on a CPU: the functions that Python calls.
//
// Each takes a Call (call.h), fills the arrays that it points to, and returns 0, or 1 where there
// was no memory to work in. Nothing here knows torch.
#include <exception>

#include "backward.h"
#include "decode.h"

// Whether the sizes of all working arrays are numbers: each is at most this product, in bytes.
static bool countable(const Call &call) {
    double heads = double(call.sequences) * call.heads * std::max<int64_t>(call.splits, 1);
    double rows = double(call.queries) + call.keys + 1024;
    return heads * rows * (double(call.head_dim) + call.value_dim + 256) * 4096 < 0x1p62;
}

// No exception may reach Python. Threads raise none: they work in arenas, which say so when they are
// refused memory; before them there are vectors.
template <class Pass> static int attempt(const Call &call, Pass pass) {
    if (!countable(call)) return 1;
    try {
        return pass(call);
    } catch (const std::exception &) {
        return 1;
    }
}

extern "C" int64_t sigmoid_attention_abi() { return sizeof(Call); }

extern "C" int sigmoid_attention_forward(const Call *given) {
    if (given->answers_nothing()) return 0;
    return attempt(*given, [](const Call &call) {
        if (decodes(call)) return decode(call);
        if (HAS_PAIRS && call.dtype == BFLOAT16) return forward<HAS_PAIRS>(call);
        return forward<false>(call);
    });
}

extern "C" int sigmoid_attention_backward(const Call *given) {
    return attempt(*given, [](const Call &call) {
        if (HAS_PAIRS && call.dtype == BFLOAT16) return backward<HAS_PAIRS>(call);
        return backward<false>(call);
    });
}
