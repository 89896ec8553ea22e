"""Calls as functions of their tensors that need gradients."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sigmoid_attention.attention import CentredKeys, Learned, sigmoid_attention
from tests.support.attention.calls import Call

SQUARE = Call(batch=1, key_heads=2, group=1, queries=3, keys=3, head_dim=2, value_dim=2, seed=7)
WIDE = SQUARE.but(batch=2, queries=2, keys=3, value_dim=1)
TALL = SQUARE.but(queries=4, keys=2, is_causal=True)
CASES: dict[str, Call] = {
    "plain-Q3-K3": SQUARE.but(bias="none"),
    "causal-Q3-K3": SQUARE.but(bias="none", is_causal=True),
    "more-queries-than-keys-Q4-K2": TALL,
    "window-and-softcap-Q2-K3": WIDE.but(window_size=(1, 0), softcap=0.7),
    "shared-keys-H4-G2": SQUARE.but(group=2, queries=2),
    "strided-Q2-K3": WIDE.but(strided=True, scale=-0.4),
    "bool-mask-QK": SQUARE.but(mask="bool QK"),
    "visible-policy-Q4-K2": TALL.but(bias="visible"),
    "row-lse-policy-Q2-K3": WIDE.but(bias="lse"),
    "row-lse-policy-Q4-K2": TALL.but(bias="lse"),
    "centred-Q3-K3": SQUARE.but(bias="centred"),
    "centred-causal-Q4-K2": TALL.but(bias="centred"),
    "centred-window-H4-G2-Q2-K3": WIDE.but(bias="centred", group=2, window_size=(1, 0)),
    "centred-mask-BHQK": WIDE.but(bias="centred", mask="bool BHQK"),
    "centred-mask-B11K": SQUARE.but(bias="centred", mask="bool B11K"),
    "learned-policy-H2": SQUARE.but(bias="learned"),
    "learned-policy-H4-G2": SQUARE.but(bias="learned", group=2, queries=2),
    **{
        f"bias-{letters or 'scalar'}": WIDE.but(bias=f"tensor {letters}")
        for letters in ("BHQK", "BHQ1", "B1QK", "H11", "111K", "QK", "")
    },
    **{
        f"float-mask-{letters or 'scalar'}": WIDE.but(mask=f"float {letters}")
        for letters in ("BHQK", "B11K", "1HQ1", "QK", "K", "")
    },
    "hiding-float-mask-BHQK": WIDE.but(mask="hiding BHQK"),
    "hiding-float-mask-row-lse": WIDE.but(mask="hiding BHQK", bias="lse"),
    "slopes-H": WIDE.but(slopes="H"),
    "slopes-BH-causal": TALL.but(slopes="BH", batch=2),
    "everything": SQUARE.but(
        group=2,
        queries=2,
        bias="tensor H11",
        mask="hiding QK",
        slopes="H",
        is_causal=True,
        window_size=(1, 0),
        softcap=0.7,
    ),
}


def trained(value: Tensor) -> Learned:
    """A learned bias around a tensor that a derivative is being taken of."""
    policy = Learned(0.0, num_heads=value.shape[0])
    del policy.value
    policy.value = value
    return policy


def differentiable(call: Call) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The call as a function of all its floating tensors, and these tensors."""
    tensors, arguments = call.build()
    if isinstance(arguments["bias"], Learned):
        arguments["bias"] = arguments["bias"].value.detach().double()
    if isinstance(arguments["bias"], CentredKeys):
        centred, arguments["bias"] = arguments["bias"], arguments["bias"].strength
    # Nothing is differentiated at -inf: the input is finite there, and hidden inside the function.
    hidden = torch.tensor(False)
    if (
        isinstance(arguments.get("attn_mask"), Tensor)
        and arguments["attn_mask"].is_floating_point()
    ):
        hidden = arguments["attn_mask"].isinf()
        arguments["attn_mask"] = arguments["attn_mask"].masked_fill(hidden, 0.5)
    names = [
        name
        for name, argument in arguments.items()
        if isinstance(argument, Tensor) and argument.is_floating_point()
    ]

    def function(query, key, value, *others):
        changed = arguments | dict(zip(names, others, strict=True))
        if call.bias == "learned":
            changed["bias"] = trained(changed["bias"])
        if call.bias == "centred":
            changed["bias"] = CentredKeys(centred.bias, changed["bias"])
        if "attn_mask" in names:
            changed["attn_mask"] = changed["attn_mask"].masked_fill(hidden, -math.inf)
        return sigmoid_attention(query, key, value, **changed)

    inputs = (*tensors, *(arguments[name] for name in names))
    return function, tuple(tensor.detach().requires_grad_() for tensor in inputs)
