// Fused sigmoid attention on a CPU: the functions that Python calls.
//
// Each takes a Call (call.h), fills the arrays that it points to, and returns 0, or 1 where there
// was no memory to work in. Nothing here knows torch.
#include "backward.h"
#include "decode.h"

extern "C" int64_t sigmoid_attention_abi() { return sizeof(Call); }

extern "C" int sigmoid_attention_forward(const Call *call) {
    if (decodes(*call)) return decode(*call);
    if (HAS_PAIRS && call->dtype == BFLOAT16) return forward<HAS_PAIRS>(*call);
    return forward<false>(*call);
}

extern "C" int sigmoid_attention_backward(const Call *call) {
    if (HAS_PAIRS && call->dtype == BFLOAT16) return backward<HAS_PAIRS>(*call);
    return backward<false>(*call);
}
