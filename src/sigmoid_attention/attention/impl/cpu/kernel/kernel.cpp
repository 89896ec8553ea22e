// Fused sigmoid attention on a CPU: the functions that Python calls.
//
// Each takes a Call (call.h), fills the arrays that it points to, and returns 0, or 1 if there was
// too little memory for the working arrays. The kernel does not use torch.
#include <exception>

#include "backward.h"
#include "decode.h"
#include "key_means.h"

// Whether the sizes of all working arrays fit an int64: each is at most this product, in bytes.
static bool sizes_fit(const Call &call) {
    double heads = double(call.sequences) * call.heads * std::max<int64_t>(call.splits, 1);
    double rows = double(call.queries) + call.keys + 1024;
    return heads * rows * (double(call.head_dim) + call.value_dim + 256) * 4096 < 0x1p62;
}

// No exception may reach Python. Threads throw none: their arenas return false without memory. The
// vectors that are allocated before the threads may throw.
template <class Arguments, class Pass>
static int run_pass(const Arguments &call, Pass pass) {
    try {
        return pass(call);
    } catch (const std::exception &) {
        return 1;
    }
}

extern "C" int64_t sigmoid_attention_abi() { return sizeof(Call); }

extern "C" int sigmoid_attention_forward(const Call *call) {
    if (call->output_is_empty()) return 0;
    return run_pass(*call, [](const Call &call) {
        if (!sizes_fit(call)) return 1;
        if (decodes(call)) return decode(call);
        if (HAS_PAIRS && call.dtype == BFLOAT16) return forward<HAS_PAIRS>(call);
        return forward<false>(call);
    });
}

extern "C" int sigmoid_attention_backward(const Call *call) {
    return run_pass(*call, [](const Call &call) {
        if (!sizes_fit(call)) return 1;
        if (HAS_PAIRS && call.dtype == BFLOAT16) return backward<HAS_PAIRS>(call);
        return backward<false>(call);
    });
}

extern "C" int sigmoid_attention_mean_products(const MeanCall *call) {
    return run_pass(*call, [](const MeanCall &call) { return for_each_head(call, mean_products); });
}

extern "C" int sigmoid_attention_mean_gradients(const MeanCall *call) {
    return run_pass(*call, [](const MeanCall &call) { return for_each_head(call, mean_gradients); });
}

extern "C" int sigmoid_attention_next_bias(const NextBiasCall *call) {
    return run_pass(*call, next_bias);
}
