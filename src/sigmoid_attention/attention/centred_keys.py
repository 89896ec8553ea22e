"""`CentredKeys`, the bias that subtracts the mean of the visible keys; `LearnedCentring` trains it.

Shape letters: B batch, G key heads, H query heads, Q queries, K keys, D head dim.
"""

from types import NoneType
from typing import Any

import torch
from torch import Tensor, fx, nn

from sigmoid_attention.attention import arguments
from sigmoid_attention.attention.bias import BiasPolicy, RowContext, RowLSE
from sigmoid_attention.attention.keep_fp32 import keep_fp32

# A proxy stands for a tensor while torch.fx traces.
_TENSORS = (Tensor, fx.Proxy)


class CentredKeys(BiasPolicy):
    r"""Sigmoid attention to centred keys: a bias by row, beside another bias.

    .. math::
        u_{ij} = s\, q_i \cdot (k_j - \lambda_h \bar k_i) + b_{ij},
        \qquad \bar k_i = \frac{1}{|V_i|} \sum_{j \in V_i} k_j

    with s the scale and V_i the keys that query i sees; in causal attention these are the keys 1 to
    i, its own among them. Softmax does not change if a number is added to all logits of a row; a
    sigmoid does. Centring removes the part s q_i · k̄_i that all logits of a row have in common. No
    row of weights is summed, but each key changes the mean and so a little of every other logit.
    The mean receives gradients. Its memory is linear in the length, and so is its time, unless a
    mask differs between queries: then the time is quadratic. A softcap acts on s q_i · k_j alone.

    This policy is the project's own; docs/centred-keys.md explains it.

    Args:
        bias: b: a number, a tensor of the shapes that a bias may have, or another policy.
        strength: λ: a number, or a tensor (heads,), which may receive a gradient. 0 changes
            nothing, 1 subtracts the whole mean.
        key_means: (batch, key heads, queries, head dim), or (1, key heads, tokens, head dim) for
            packed sequences: the means k̄ if the caller has them, such as from the running sums of
            a cache. None computes them from the call's keys.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a strength that is not finite, or a bias that is `RowLSE`, `CentredKeys` or
            `LearnedCentring`: these remove the common part themselves. A call raises it for a
            strength or means of another shape or device, or that are not floating.

    Example:
        >>> import torch
        >>> from sigmoid_attention import CentredKeys, NegLogLength, sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> bias = CentredKeys(NegLogLength(5))
        >>> out = sigmoid_attention(q, k, v, bias=bias)
        >>> shifted = sigmoid_attention(q, k + torch.randn(8), v, bias=bias)
        >>> torch.allclose(out, shifted, atol=1e-5)
        True
    """

    # A layer makes a policy in each call; a dataclass would take more time.
    __slots__ = ("bias", "key_means", "strength")

    def __init__(
        self,
        bias: float | Tensor | BiasPolicy,
        strength: float | Tensor = 1.0,
        key_means: Tensor | None = None,
    ) -> None:
        if not isinstance(bias, _TENSORS):
            wanted = "a finite number, a tensor or a bias policy"
            bias = _inner("CentredKeys: bias", bias, wanted)
        if not isinstance(strength, _TENSORS):
            wanted = "a finite number or a tensor (heads,)"
            strength = arguments.number("CentredKeys: strength", strength, wanted)
        if not isinstance(key_means, (*_TENSORS, NoneType)):
            arguments.tensor("CentredKeys: key_means", key_means)
        self.bias, self.strength, self.key_means = bias, strength, key_means

    def resolve(self, rows: RowContext) -> Tensor:
        common = rows.mean_logits(self.key_means)
        return rows.resolved(self.bias) - self._strength(rows) * common

    def _strength(self, rows: RowContext) -> float | Tensor:
        if not isinstance(self.strength, Tensor):
            return self.strength
        shape = (rows.heads,) if self.strength.dim() else ()
        arguments.floating("CentredKeys: strength", self.strength, shape, rows.device)
        return self.strength.to(rows.dtype).view(1, -1, 1, 1)

    def __repr__(self) -> str:
        return f"CentredKeys({self.bias!r}, strength={self.strength!r})"

    def __fx_create_arg__(self, tracer: Any) -> Any:
        fields = (self.bias, self.strength, self.key_means)
        given = tuple(map(tracer.create_arg, fields))
        return tracer.create_node("call_function", CentredKeys, given, {})


class LearnedCentring(nn.Module, BiasPolicy):
    """`CentredKeys` with a strength for each head that a layer trains.

    The parameter is ``strength`` of shape (heads,), with the initial value ``init``. It stays in
    fp32 when the model is cast to a narrower dtype.

    Args:
        bias: the bias of the centred logits: a number or a policy, which may be a `Learned`.
        num_heads: query heads.
        init: the initial strength of all heads.

    Raises:
        TypeError: an argument of another kind.
        ValueError: numbers that are not finite, or a bias that `CentredKeys` refuses.

    Example:
        >>> from sigmoid_attention import LearnedCentring, NegLogLength
        >>> policy = LearnedCentring(NegLogLength(256), num_heads=2)
        >>> policy.strength.tolist()
        [1.0, 1.0]
    """

    def __init__(self, bias: float | BiasPolicy, num_heads: int, init: float = 1.0) -> None:
        super().__init__()
        arguments.whole("LearnedCentring: num_heads", num_heads, 1, "a positive whole number")
        start = float(arguments.number("LearnedCentring: init", init))
        self.bias = _inner("LearnedCentring: bias", bias, "a finite number or a bias policy")
        self.strength = nn.Parameter(torch.full((num_heads,), start, dtype=torch.float32))

    def forward(self) -> Tensor:
        """(heads,)."""
        # `fully_shard` makes a subclass that frees the parameter's memory after this call.
        return self.strength if type(self) is LearnedCentring else self.strength.clone()

    def for_call(self, input_BNC: Tensor | None = None) -> CentredKeys:
        bias = self.bias
        bias = bias.for_call(input_BNC) if isinstance(bias, BiasPolicy) else bias
        # The bias was checked when this policy was made.
        policy = CentredKeys.__new__(CentredKeys)
        policy.bias, policy.strength, policy.key_means = bias, self(), None
        return policy

    def resolve(self, rows: RowContext) -> Tensor:
        return self.for_call().resolve(rows)

    def __fx_create_arg__(self, tracer: Any) -> Any:
        return CentredKeys(self.bias, self.strength).__fx_create_arg__(tracer)

    def extra_repr(self) -> str:
        # A Learned bias is a submodule, and printed as such.
        shown = "" if isinstance(self.bias, nn.Module) else f"bias={self.bias!r}, "
        return f"{shown}num_heads={self.strength.numel()}"


keep_fp32(LearnedCentring, "strength")


def _inner(name: str, bias: Any, wanted: str) -> float | BiasPolicy:
    """The bias of the centred logits, a number or a policy."""
    if isinstance(bias, RowLSE | CentredKeys | LearnedCentring):
        raise ValueError(
            f"{name} must not remove the common part of a row itself, got {type(bias).__name__}"
        )
    return bias if isinstance(bias, BiasPolicy) else arguments.number(name, bias, wanted)
