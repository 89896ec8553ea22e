"""Bias policies: what is added to every logit before the sigmoid, and from which n.

A sigmoid does not normalise, so its bias sets the size of a row: with b = -log n a row of n
neutral keys sums to about one. Which n is a property of the model, not of the call. A policy
says so once, and gives the same answer in one pass, with a cache, in chunks and under padding.

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
    """The rows of a call, for a policy; costly properties are computed on demand."""

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

    def aligned(self, rows_BHQ: Tensor) -> Tensor:
        """What lies like the call's queries, (B, H, Q, ...), as the bias wants it.

        It is another order only for packed sequences, of which each gets a row of the batch.
        """
        ...


class BiasPolicy:
    """Base of the policies; ``resolve`` turns one into a float or a (B, H, Q, 1) broadcastable."""

    def resolve(self, rows: RowContext) -> float | Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not say how it is resolved")


Bias = float | Tensor | BiasPolicy


def _check_number(name: str, given: Any) -> None:
    """A finite number, or a tensor, which the operator takes as it takes a tensor of bias."""
    if not isinstance(given, Tensor):
        arguments.number(name, given, "a finite number or a tensor")


def _check_length(n: Any, owner: str) -> None:
    """A whole number, such as 1024 or 1e6."""
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
    """The same bias everywhere: b.

    b may be a tensor, like one given as ``bias``, and then gets its gradient; a layer, which would
    not have it among its parameters, takes `Learned` instead. Raises ``ValueError`` unless b is
    that or a finite number.

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

    An offset may be a tensor, too, which gets its gradient. Raises ``ValueError`` unless n is a
    positive whole number, and the offset that or a finite number.

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
            # The length may be a symbol, whose logarithm in Python would fix it in the graph.
            length = torch.scalar_tensor(self.n, dtype=torch.float64, device=rows.device)
            return (self.offset - length.log()).to(rows.dtype)
        return self.value


@dataclass(frozen=True)
class NegLogVisible(BiasPolicy):
    """b_i = -log max(keys that query i may see, at_least), a bias for every row.

    Consistent under caches and padding like a constant, since it counts what the row sees and
    not how long the call is. Raises ``ValueError`` if at_least is below one.

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
    """b_h = offset - log L_h, where ALiBi lets head h see about L_h keys instead of n.

    With slope m a key at distance t carries a weight near e^(-m t), so a causal row of n keys
    counts for L_h = sum_{t<n} e^(-m t) = (1 - e^(-m n)) / (1 - e^(-m)), and L_h = n for m = 0.
    Raises ``ValueError`` unless n is a positive whole number, and the slopes and offset are finite
    numbers, the slopes of 0 or more. This policy is the project's own.

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
        return _for_heads(self.values, rows.dtype, rows.device)


def _for_heads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, H, 1, 1), copied to its device once: while a CUDA graph is captured nothing may be."""
    make = _kept_for_heads if torch_state.results_may_be_kept() else _made_for_heads
    return make(values, dtype, device)


def _made_for_heads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


@lru_cache
def _kept_for_heads(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # What is made in inference mode could not be used where something learns.
    with torch.inference_mode(False):
        return _made_for_heads(values, dtype, device)


class HeadValues(BiasPolicy):
    """b_h: a number for each head, from a tensor (heads,) of the caller.

    It gets its gradient like any tensor. Raises ``ValueError`` for another number of heads.

    Example:
        >>> import torch
        >>> from sigmoid_attention import sigmoid_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind(0)
        >>> b = torch.tensor([-2.0, -3.0], requires_grad=True)
        >>> sigmoid_attention(q, k, v, bias=HeadValues(b)).sum().backward()
        >>> b.grad.shape
        torch.Size([2])
    """

    # Made for every call of a layer that keeps such a tensor: no dataclass, as it costs no time.
    __slots__ = ("owner", "value")

    def __init__(self, value: Tensor, owner: str = "HeadValues") -> None:
        self.value, self.owner = value, owner

    def resolve(self, rows: RowContext) -> Tensor:
        return _each_head(self.value, rows, self.owner)

    def __fx_create_arg__(self, tracer: Any) -> Any:
        return _traced_for_heads(self.value, tracer)


def _traced_for_heads(value_H: Tensor, tracer: Any) -> Any:
    """The node that torch.fx has in a graph for a policy: the policy made of the traced tensor."""
    return tracer.create_node("call_function", HeadValues, (tracer.create_arg(value_H),), {})


def _each_head(value_H: Tensor, rows: RowContext, owner: str) -> Tensor:
    arguments.dense("bias", value_H)
    if value_H.shape != (rows.heads,):
        raise ValueError(f"bias: {owner} has {value_H.numel()} heads, query {rows.heads}")
    return value_H.view(1, -1, 1, 1)


def _start(number: Any) -> float:
    return float(arguments.number("Learned: init", number))


class Learned(nn.Module, BiasPolicy):
    """A trained bias per head, started from a number or from a policy that needs no row.

    The parameter is ``value`` of shape (heads,), which stays in fp32 when the model is cast to
    less; it receives its gradient from every implementation. Raises ``ValueError`` if ``init``
    depends on the rows of a call, or is no finite number.

    Example:
        >>> Learned(NegLogLength(256), num_heads=2).value.shape
        torch.Size([2])
    """

    def __init__(self, init: float | BiasPolicy, num_heads: int) -> None:
        super().__init__()
        arguments.whole("Learned: num_heads", num_heads, 1, "a positive whole number")
        if isinstance(init, NegLogEffectiveLength):
            start = init.values
            if len(start) != num_heads:
                raise ValueError(f"Learned: init has {len(start)} slopes for {num_heads} heads")
        elif isinstance(init, NegLogLength | Constant):
            start = (_start(init.value if isinstance(init, NegLogLength) else init.b),) * num_heads
        elif isinstance(init, BiasPolicy):
            raise ValueError(
                f"Learned: init must be a number, Constant, NegLogLength or NegLogEffectiveLength, "
                f"got {type(init).__name__}, which depends on the rows of a call"
            )
        else:
            start = (_start(init),) * num_heads
        self.value = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def forward(self) -> Tensor:
        """(heads,)."""
        # What `fully_shard` makes of the class frees the parameter's memory behind this call.
        return self.value if type(self) is Learned else self.value.clone()

    def resolve(self, rows: RowContext) -> Tensor:
        return _each_head(self(), rows, "Learned")

    def __fx_create_arg__(self, tracer: Any) -> Any:
        return _traced_for_heads(self.value, tracer)

    def extra_repr(self) -> str:
        return f"num_heads={self.value.numel()}"


keep_fp32(Learned, "value")


def once_called(bias: T) -> T | HeadValues:
    """A `Learned` bias as the values that its own forward pass gives; any other as it is.

    Offloading, sharding and hooks act where a module is called, and a call of the operator is to
    be one call of its bias.
    """
    return HeadValues(bias(), "Learned") if isinstance(bias, Learned) else bias


@dataclass(frozen=True)
class RowLSE(BiasPolicy):
    """b_i = -log sum_j e^(logit_ij) over the row's visible keys: a start for conversion.

    Turns a softmax weight p into sigmoid(log p) = p / (1 + p). It couples the keys again and
    needs the whole row, so it is meant for converting a trained model, not for training one.

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
        # A row that sees nothing has -inf here; any finite bias will do, its weights are zero.
        return -lse.masked_fill(lse == float("-inf"), 0.0)
