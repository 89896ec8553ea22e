"""Bias policies: rules for the number that is added to every logit before the sigmoid.

A sigmoid does not normalise, so the bias sets the sum of a row's weights: with b = -log n, the
weights of n keys of logit zero have a sum of about one. The length n belongs to the model, not to
the call. A policy stores n, so the output is the same in one pass, with a cache, in chunks and
under padding.

Shape letters: B batch, H query heads, Q queries, K keys, D head dim.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments, torch_state
from sigmoid_attention.attention.keep_fp32 import keep_fp32

T = TypeVar("T")


class RowContext(Protocol):
    """The properties of a call's query rows that a policy may use, computed on demand."""

    @property
    def heads(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which the bias is added."""
        ...

    @property
    def device(self) -> torch.device: ...

    def visible_counts(self) -> Tensor:
        """(..., Q, 1), the number of keys that each query may see."""
        ...

    def row_lse(self) -> Tensor:
        """(B, H, Q, 1), the log-sum-exp of each row's visible logits before the bias."""
        ...

    def mean_logits(self, means: Tensor | None = None) -> Tensor:
        """(B, H, Q, 1), the scaled product of each query with the mean of the keys that it sees.

        ``means`` are these means, (B, key heads, Q, D), if they are known.
        """
        ...

    def aligned(self, rows_BHQ: Tensor) -> Tensor:
        """A tensor in the queries' layout, (B, H, Q, ...), in the layout of the bias.

        The layouts differ only for packed sequences: there each sequence becomes one batch row.
        """
        ...


class BiasPolicy:
    """Base class: ``resolve`` returns a float or a tensor broadcastable to (B, H, Q, 1)."""

    def resolve(self, rows: RowContext) -> float | Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how it is resolved")

    def for_call(self, input_BNC: Tensor | None = None) -> "BiasPolicy":
        """The policy for one call of a layer with this input; a policy with modules calls them."""
        return self


Bias = float | Tensor | BiasPolicy


def _check_number(name: str, given: Any) -> None:
    """Raise unless the argument is a finite number or a tensor; a tensor is checked by the call."""
    if not isinstance(given, Tensor):
        arguments.number(name, given, "a finite number or a tensor")


def _check_length(n: Any, owner: str) -> None:
    """Raise unless n is a positive whole number, such as 1024 or 1e6."""
    length = arguments.scalar(n)
    if arguments.is_number(length):
        if 0 < length < math.inf and (not isinstance(length, float) or length.is_integer()):
            return
        error = ValueError
    else:
        error = TypeError
    raise error(
        f"{owner}: n is the number of keys seen in training and must be a positive whole number, "
        f"got {arguments.shown(n)}"
    )


@dataclass(frozen=True)
class Constant(BiasPolicy):
    """The same bias b for every logit.

    b may be a tensor of the shapes that ``bias`` may have, and then receives a gradient. A layer
    needs `Learned` instead, because a tensor in a policy is not among the layer's parameters.
    Raises ``ValueError`` unless b is a tensor or a finite number.

    Example:
        >>> import torch
        >>> from sigmoid_attention import Constant, sigmoid_attention
        >>> q = k = v = torch.ones(1, 1, 2, 4)
        >>> sigmoid_attention(q, k, v, bias=Constant(-10.0)).shape
        torch.Size([1, 1, 2, 4])
    """

    b: float | Tensor

    def __post_init__(self) -> None:
        _check_number("Constant: b", self.b)

    def resolve(self, rows: RowContext) -> float | Tensor:
        return self.b


@dataclass(frozen=True)
class NegLogLength(BiasPolicy):
    """b = offset - log n, with n the training length (Ramapuram et al. 2024, appendix E).

    The offset may be a tensor and then receives a gradient. Raises ``ValueError`` unless n is a
    positive whole number and the offset a tensor or a finite number.

    Example:
        >>> NegLogLength(1024).value
        -6.931471805599453
    """

    n: int
    offset: float | Tensor = 0.0

    def __post_init__(self) -> None:
        _check_length(self.n, "NegLogLength")
        _check_number("NegLogLength: offset", self.offset)

    @property
    def value(self) -> float | Tensor:
        return self.offset - math.log(self.n)

    def resolve(self, rows: RowContext) -> float | Tensor:
        if torch.compiler.is_compiling():
            # The length may be a symbol: math.log would make it a constant of the graph.
            length = torch.scalar_tensor(self.n, dtype=torch.float64, device=rows.device)
            return (self.offset - length.log()).to(rows.dtype)
        return self.value


@dataclass(frozen=True)
class NegLogVisible(BiasPolicy):
    """b_i = -log max(number of keys that query i may see, at_least), one bias per row.

    It depends on the visible keys and not on the call's length, so caches and padding do not change
    it. Raises ``ValueError`` if at_least is below one.

    Example:
        >>> NegLogVisible(at_least=16)
        NegLogVisible(at_least=16)
    """

    at_least: int = 1

    def __post_init__(self) -> None:
        wanted = "a whole number of 1 or more"
        arguments.whole("NegLogVisible: at_least", self.at_least, 1, wanted)

    def resolve(self, rows: RowContext) -> Tensor:
        return -rows.visible_counts().clamp(min=self.at_least).to(rows.dtype).log()


@dataclass(frozen=True)
class NegLogEffectiveLength(BiasPolicy):
    """b_h = offset - log L_h, with L_h the effective number of keys of head h under ALiBi.

    With slope m, ALiBi multiplies the weight of a key at distance t by about e^(-m t). So a causal
    row of n keys has L_h = sum_{t<n} e^(-m t) = (1 - e^(-m n)) / (1 - e^(-m)), and L_h = n for
    m = 0. Raises ``ValueError`` unless n is a positive whole number, the offset a finite number,
    and the slopes finite numbers of 0 or more. This policy is this project's own.

    Example:
        >>> [round(b, 3) for b in NegLogEffectiveLength((0.5, 0.0), n=8).values]
        [-0.914, -2.079]
    """

    alibi_slopes: tuple[float, ...]
    n: int
    offset: float = 0.0

    def __init__(self, alibi_slopes: Sequence[float] | Tensor, n: int, offset: float = 0.0) -> None:
        _check_length(n, "NegLogEffectiveLength")
        offset = float(arguments.number("NegLogEffectiveLength: offset", offset))
        if isinstance(alibi_slopes, Tensor):
            if alibi_slopes.dim() != 1:
                shape = tuple(alibi_slopes.shape)
                raise ValueError(f"NegLogEffectiveLength: slopes must be (heads,), got {shape}")
            if alibi_slopes.requires_grad:
                raise ValueError(
                    "NegLogEffectiveLength: slopes are read as numbers and could not learn here, "
                    "got some that require a gradient; give alibi_slopes.detach()"
                )
            alibi_slopes = alibi_slopes.tolist()
        if isinstance(alibi_slopes, str) or not isinstance(alibi_slopes, Iterable):
            raise TypeError(
                f"NegLogEffectiveLength: slopes must be a number for each head, "
                f"got {arguments.shown(alibi_slopes)}"
            )
        name = "NegLogEffectiveLength: slopes"
        slopes = tuple(float(arguments.number(name, slope)) for slope in alibi_slopes)
        if any(slope < 0 for slope in slopes):
            raise ValueError(f"NegLogEffectiveLength: slopes must not be negative, got {slopes}")
        object.__setattr__(self, "alibi_slopes", slopes)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "offset", offset)

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(
            self.offset - math.log(math.expm1(-m * self.n) / math.expm1(-m) if m > 0 else self.n)
            for m in self.alibi_slopes
        )

    def resolve(self, rows: RowContext) -> Tensor:
        if len(self.alibi_slopes) != rows.heads:
            raise ValueError(
                f"bias: NegLogEffectiveLength has {len(self.alibi_slopes)} slopes "
                f"for {rows.heads} heads"
            )
        return for_heads(self.values, rows.dtype, rows.device)


def for_heads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, H, 1, 1), cached, because a CUDA graph capture allows no copy from the host."""
    make = _kept_for_heads if torch_state.results_may_be_kept() else _made_for_heads
    return make(values, dtype, device)


def _made_for_heads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


@lru_cache
def _kept_for_heads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor made in inference mode could not be used in training.
    with torch.inference_mode(False):
        return _made_for_heads(values, dtype, device)


class HeadValues(BiasPolicy):
    """b_h: a bias per head, from a tensor (heads,) of the caller.

    The tensor may receive a gradient. Raises ``ValueError`` for another number of heads.

    Example:
        >>> import torch
        >>> from sigmoid_attention import sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> b = torch.tensor([-2.0, -3.0], requires_grad=True)
        >>> sigmoid_attention(q, k, v, bias=HeadValues(b)).sum().backward()
        >>> b.grad.shape
        torch.Size([2])
    """

    # A layer with such a tensor makes a policy in each call; a dataclass would take more time.
    __slots__ = ("owner", "value")

    def __init__(self, value: Tensor, owner: str = "HeadValues") -> None:
        self.value, self.owner = value, owner

    def resolve(self, rows: RowContext) -> Tensor:
        return _each_head(self.value, rows, self.owner)

    def __fx_create_arg__(self, tracer: Any) -> Any:
        return _traced_for_heads(self.value, tracer)


def _traced_for_heads(value_H: Tensor, tracer: Any) -> Any:
    """The torch.fx node of a policy: a call of HeadValues with the traced tensor."""
    return tracer.create_node("call_function", HeadValues, (tracer.create_arg(value_H),), {})


def _each_head(value_H: Tensor, rows: RowContext, owner: str) -> Tensor:
    arguments.dense("bias", value_H)
    if value_H.shape != (rows.heads,):
        raise ValueError(f"bias: {owner} has {value_H.numel()} heads, query {rows.heads}")
    return value_H.view(1, -1, 1, 1)


def head_values(bias: float | BiasPolicy, num_heads: int, name: str) -> tuple[float, ...]:
    """The number of each head, of a number or of a policy that needs no row of a call.

    Raises ``TypeError`` for a policy that depends on the rows, ``ValueError`` for other numbers of
    heads and for numbers that are not finite.
    """
    if isinstance(bias, NegLogEffectiveLength):
        if len(bias.values) != num_heads:
            raise ValueError(f"{name} has {len(bias.values)} slopes for {num_heads} heads")
        return bias.values
    if isinstance(bias, Constant | NegLogLength):
        bias = bias.b if isinstance(bias, Constant) else bias.value  # pyright: ignore
    elif isinstance(bias, BiasPolicy):
        raise TypeError(
            f"{name} must be a number, Constant, NegLogLength or NegLogEffectiveLength, "
            f"got {type(bias).__name__}, which depends on the rows of a call"
        )
    return (float(arguments.number(name, bias)),) * num_heads


class Learned(nn.Module, BiasPolicy):
    """A trained bias per head, initialised by a number or by a policy without row statistics.

    The parameter is ``value`` of shape (heads,). It stays in fp32 when the model is cast to a
    narrower dtype, and receives a gradient from every implementation. Raises ``TypeError`` if
    ``init`` is a policy that depends on the rows of a call, ``ValueError`` if it is not finite.

    Example:
        >>> Learned(NegLogLength(256), num_heads=2).value.shape
        torch.Size([2])
    """

    def __init__(self, init: float | BiasPolicy, num_heads: int) -> None:
        super().__init__()
        arguments.whole("Learned: num_heads", num_heads, 1, "a positive whole number")
        start = head_values(init, num_heads, "Learned: init")
        self.value = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def forward(self) -> Tensor:
        """(heads,)."""
        # `fully_shard` makes a subclass that frees the parameter's memory after this call.
        return self.value if type(self) is Learned else self.value.clone()

    def for_call(self, input_BNC: Tensor | None = None) -> HeadValues:
        return HeadValues(self(), "Learned")

    def resolve(self, rows: RowContext) -> Tensor:
        return self.for_call().resolve(rows)

    def __fx_create_arg__(self, tracer: Any) -> Any:
        return _traced_for_heads(self.value, tracer)

    def extra_repr(self) -> str:
        return f"num_heads={self.value.numel()}"


keep_fp32(Learned, "value")


def once_called(bias: T) -> T | BiasPolicy:
    """The policy for one operator call; any other bias unchanged.

    Offloading, sharding and hooks act when a module is called, so each attention call calls the
    modules of its bias exactly once.
    """
    return bias.for_call() if isinstance(bias, BiasPolicy) else bias


@dataclass(frozen=True)
class RowLSE(BiasPolicy):
    """b_i = -log sum_j e^(logit_ij) over the row's visible keys: the start of a conversion.

    A softmax weight p becomes sigmoid(log p) = p / (1 + p). This bias couples the keys and needs
    the whole row, so it is meant for the conversion of a trained model, not for training.

    Example:
        >>> import torch
        >>> from sigmoid_attention import sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 1, 4, 8).unbind(0)
        >>> p = torch.softmax(q @ k.mT / 8**0.5, -1)
        >>> out = sigmoid_attention(q, k, v, bias=RowLSE())
        >>> torch.allclose(out, p / (1 + p) @ v, atol=1e-6)
        True
    """

    def resolve(self, rows: RowContext) -> Tensor:
        lse = rows.row_lse()
        # A row without visible keys has -inf here. Its weights are zero for any finite bias.
        return -lse.masked_fill(lse == float("-inf"), 0.0)
