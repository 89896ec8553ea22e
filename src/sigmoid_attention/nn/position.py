"""Position encodings, of embeddings or of queries and keys.

There are two kinds, each a base class. An `EmbeddingPosition` acts once, on the embeddings
of the model (SinCos, LearnedPosition, CAPE). An `AttentionPosition` acts in every layer: it
rotates queries and keys (RoPE) or gives the operator its slopes (ALiBi). The base class of each
kind does nothing, so models and layers call its methods without checking which encoding it is.

Shape letters: B batch, N tokens, C model dim, H heads, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments
from sigmoid_attention.attention.bias import for_heads
from sigmoid_attention.nn.sizes import (
    finite_number,
    number_from_zero,
    one_of,
    positive_number,
    positive_whole,
    switch,
)


def token_positions(
    batch: int, tokens: int, start: int, attn_mask: Tensor | None, device: torch.device
) -> Tensor:
    """Positions of the ``tokens`` that follow ``start`` cached ones, (B, N), or (1, N) unmasked.

    Padding takes no position: the position of a token is the number of real tokens before it, so
    the position of the padding in a row does not matter. Raises ``TypeError`` unless the mask is a
    tensor, and ``ValueError`` unless it is boolean of shape (batch, start + tokens).
    """
    if attn_mask is None:
        return torch.arange(start, start + tokens, device=device)[None]
    arguments.dense("attn_mask", attn_mask)
    if attn_mask.dtype != torch.bool or attn_mask.shape != (batch, start + tokens):
        raise ValueError(
            f"attn_mask must be boolean of shape (batch, cached + new tokens) = "
            f"{(batch, start + tokens)}, got {attn_mask.dtype} of shape "
            f"{tuple(attn_mask.shape)}"
        )
    positions_BN = attn_mask.long().cumsum(-1) - 1
    return positions_BN[:, start:].clamp(min=0)


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> Tensor:
    """The geometric ALiBi slopes, an fp32 tensor of shape (num_heads,).

    m_h = 2^(-8h/H) for h = 1..H where H is a power of two. Otherwise the slopes of the next lower
    power of two P, followed by every second slope of 2P (Press et al. 2022, section 3 and their
    released code). Raises ``ValueError`` if num_heads is not positive.

    Example:
        >>> alibi_slopes(4).tolist()
        [0.25, 0.0625, 0.015625, 0.00390625]
        >>> alibi_slopes(3).tolist()
        [0.0625, 0.00390625, 0.25]
    """
    # Computed on the device, where a CUDA graph can capture it, and from floats, since a quotient
    # of integers has torch's default dtype.
    parts = [
        torch.arange(i.start, i.stop, i.step, dtype=torch.float32, device=device) / of
        for i, of in _slope_indices(positive_whole("num_heads", num_heads))
    ]
    return torch.exp2(-8 * torch.cat(parts))


def slope_numbers(num_heads: int) -> tuple[float, ...]:
    """The slopes of `alibi_slopes` as Python floats, also where tensors are fake or meta.

    Example:
        >>> slope_numbers(3)
        (0.0625, 0.00390625, 0.25)
    """
    indices = _slope_indices(positive_whole("num_heads", num_heads))
    return tuple(2.0 ** (-8 * h / of) for part, of in indices for h in part)


def _slope_indices(num_heads: int) -> tuple[tuple[range, int], ...]:
    """The h and the H of m_h = 2^(-8h/H), for P slopes and then for the slopes of 2P."""
    power = 1 << (num_heads.bit_length() - 1)
    return (range(1, power + 1), power), (range(1, 1 + 2 * (num_heads - power), 2), 2 * power)


def _sinusoids(positions: Tensor, dim: int, base: float) -> Tensor:
    """sin and cos of the positions at dim/2 frequencies base^(-2i/dim), (..., dim), in fp32."""
    channels = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device)
    frequency = base ** (-channels / dim)
    angle = positions[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def _even(dim: int, owner: str) -> int:
    even = positive_whole(f"{owner}: dim", dim)
    if even % 2:
        raise ValueError(f"{owner}: dim must be even, since channels form pairs, got {dim}")
    return even


class EmbeddingPosition(nn.Module):
    """A position that the model adds to its embeddings; this base class adds nothing.

    ``max_length`` is the length of the longest sequence that it can encode, None for no limit.

    Example:
        >>> EmbeddingPosition()(torch.ones(1, 2, 4), torch.tensor([[0, 1]])).shape
        torch.Size([1, 2, 4])
    """

    max_length: int | None = None

    def forward(self, x_BNC: Tensor, positions_BN: Tensor) -> Tensor:
        return x_BNC


class SinCos(EmbeddingPosition):
    """Fixed sinusoids: x + scale * [sin(p w_i), cos(p w_i)], w_i = base^(-2i/dim).

    ``scale`` defaults to dim^-1/2. Vaswani et al. 2017 (section 3.5) multiply the embedding by
    dim^1/2 instead; the ratio of the two terms is the same, and a tied output keeps its size.
    Raises ``ValueError`` if dim is odd, base not positive or scale not finite.

    Example:
        >>> SinCos(4, scale=1.0)(torch.zeros(1, 1, 4), torch.tensor([[0]])).tolist()
        [[[0.0, 0.0, 1.0, 1.0]]]
    """

    def __init__(self, dim: int, base: float = 10_000.0, scale: float | None = None) -> None:
        super().__init__()
        owner = type(self).__name__
        self.dim, self.base = _even(dim, owner), positive_number(f"{owner}: base", base)
        self.scale = self.dim**-0.5 if scale is None else finite_number(f"{owner}: scale", scale)

    def forward(self, x_BNC: Tensor, positions_BN: Tensor) -> Tensor:
        return x_BNC + (self.scale * _sinusoids(positions_BN, self.dim, self.base)).to(x_BNC.dtype)


class CAPE(SinCos):
    """Sinusoids whose positions are jittered in training and plain at evaluation.

    p' = (p + shift + local_p) * exp(log_scale), with shift ~ U(-max_shift, max_shift) and
    log_scale ~ U(-log max_scale, log max_scale) drawn for each sequence, and local_p
    ~ U(-max_local_shift, max_local_shift) for each token (Likhomanenko et al. 2021, section 3).
    Positions count tokens from the first one and are not centred on the middle, since the final
    length is unknown when tokens are cached. The default ranges are this project's.
    Raises ``ValueError`` if dim is odd, a shift is negative or max_scale is below one.

    Example:
        >>> cape, x, p = CAPE(4), torch.zeros(1, 2, 4), torch.tensor([[0, 1]])
        >>> torch.equal(cape.eval()(x, p), SinCos(4)(x, p))
        True
        >>> torch.equal(cape.train()(x, p), SinCos(4)(x, p))
        False
    """

    def __init__(
        self,
        dim: int,
        *,
        max_shift: float = 8.0,
        max_local_shift: float = 0.5,
        max_scale: float = 1.03,
        base: float = 10_000.0,
    ) -> None:
        super().__init__(dim, base)
        self.max_shift = number_from_zero("CAPE: max_shift", max_shift)
        self.max_local_shift = number_from_zero("CAPE: max_local_shift", max_local_shift)
        self.max_scale = number_from_zero("CAPE: max_scale", max_scale, "1 or more")
        if self.max_scale < 1:
            raise ValueError(f"CAPE: max_scale must be 1 or more, got {self.max_scale}")

    def forward(self, x_BNC: Tensor, positions_BN: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BNC, positions_BN)
        batch, tokens, _ = x_BNC.shape

        def symmetric(*shape: int) -> Tensor:
            return 2 * torch.rand(shape, dtype=torch.float32, device=x_BNC.device) - 1

        jittered_BN = positions_BN + self.max_shift * symmetric(batch, 1)
        jittered_BN = jittered_BN + self.max_local_shift * symmetric(batch, tokens)
        return super().forward(x_BNC, jittered_BN * self.max_scale ** symmetric(batch, 1))


class LearnedPosition(EmbeddingPosition):
    """A trained vector for each position: x + table[p], for at most ``max_length`` positions.

    The table starts as a normal of standard deviation dim^-1/2, the size of the embeddings.
    Raises ``TypeError`` or ``ValueError`` unless dim and max_length are positive whole numbers.

    Example:
        >>> LearnedPosition(8, max_length=16).table.weight.shape
        torch.Size([16, 8])
    """

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        max_length = positive_whole("LearnedPosition: max_length", max_length)
        self.max_length = max_length
        dim = positive_whole("LearnedPosition: dim", dim)
        self.table = nn.Embedding(max_length, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, x_BNC: Tensor, positions_BN: Tensor) -> Tensor:
        return x_BNC + self.table(positions_BN)


class AttentionPosition:
    """A position that acts inside every attention layer; this base class does nothing.

    It stores no buffers. Each call computes angles or slopes in fp32, so ``model.bfloat16()`` does
    not round them, and a model may be built on the meta device.

    Example:
        >>> AttentionPosition().slopes(num_heads=2, device="cpu") is None
        True
    """

    def check(self, head_dim: int) -> None:
        """Raise ``ValueError`` if the encoding does not support heads of this size."""

    def rotate(self, query: Tensor, key: Tensor, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, each (B, H, N, D), after the position has acted on them."""
        return query, key

    def slopes(self, num_heads: int, device: torch.device | str) -> Tensor | None:
        """Slopes for the operator's ``alibi_slopes``, (H,), or None."""
        return None


@dataclass(frozen=True)
class RoPE(AttentionPosition):
    """Rotate channel pairs (i, i + D/2) of queries and keys by the angle p * base^(-2i/D).

    A product of a rotated query and key depends on their distance only (Su et al. 2021, eq. 34).
    Rotation is computed in fp32 and returned in the input's dtype. Raises ``TypeError`` or
    ``ValueError`` unless base is a positive number; ``check`` raises it for an odd head_dim.

    Example:
        >>> q = torch.tensor([1.0, 0.0]).expand(1, 1, 1, 2)
        >>> turned, _ = RoPE().rotate(q, q, torch.tensor([[1]]))
        >>> [round(x, 3) for x in turned.flatten().tolist()]  # cos 1, sin 1
        [0.54, 0.841]
    """

    base: float = 10_000.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", positive_number("RoPE: base", self.base))

    def check(self, head_dim: int) -> None:
        _even(head_dim, "RoPE")

    def rotate(self, query: Tensor, key: Tensor, positions_BN: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(query.dtype, torch.float32)
        turns_B1ND = _sinusoids(positions_BN[:, None].to(dtype), query.shape[-1], self.base)
        sin, cos = turns_B1ND.chunk(2, -1)

        def turn(x_BHND: Tensor) -> Tensor:
            first, second = x_BHND.to(dtype).chunk(2, -1)
            turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
            return turned.to(x_BHND.dtype)

        return turn(query), turn(key)


@dataclass(frozen=True)
class ALiBi(AttentionPosition):
    """Subtract slope_h * distance from every logit, with the slopes of `alibi_slopes`.

    Example:
        >>> ALiBi().slopes(num_heads=2, device="cpu").tolist()
        [0.0625, 0.00390625]
    """

    def slopes(self, num_heads: int, device: torch.device | str) -> Tensor:
        return alibi_slopes(num_heads, device)


@dataclass(frozen=True)
class RoPEWithALiBi(RoPE):
    """`RoPE` on all heads and, on some of them, the slopes of `ALiBi` too.

    Every query and key is rotated, and head h loses m_h * distance from each logit. m_h is the
    head's number in `alibi_slopes`, and 0 for the heads that are not chosen. A head with a slope
    attends to near keys, also in sequences that are longer than in training.

    Args:
        base: that of `RoPE`.
        heads: "half" for the first, third, ... head, or True or False for each head.

    Raises ``TypeError`` or ``ValueError`` for other arguments, and ``ValueError`` where ``heads``
    is for another number of heads than a layer has. Source: Su et al. 2021 (eq. 34) and Press et
    al. 2022 (section 3); the combination is the project's own.

    Example:
        >>> from sigmoid_attention.nn import RoPEWithALiBi
        >>> RoPEWithALiBi().slope_numbers(4)
        (0.25, 0.0, 0.015625, 0.0)
        >>> RoPEWithALiBi(heads=(False, True)).slopes(2, "cpu").tolist()
        [0.0, 0.00390625]
    """

    heads: str | tuple[bool, ...] = "half"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.heads, str):
            one_of("RoPEWithALiBi: heads", self.heads, ("half",), "'half' or a tuple of bools")
            return
        if not isinstance(self.heads, tuple | list):
            raise TypeError(
                f"RoPEWithALiBi: heads must be 'half' or a tuple of bools, "
                f"got {arguments.shown(self.heads)}"
            )
        chosen = tuple(switch("RoPEWithALiBi: heads", head) for head in self.heads)
        object.__setattr__(self, "heads", chosen)

    def slope_numbers(self, num_heads: int) -> tuple[float, ...]:
        """The slope of each head, 0 for a head without, as Python floats."""
        heads = self.heads
        if isinstance(heads, str):
            heads = tuple(head % 2 == 0 for head in range(num_heads))
        if len(heads) != num_heads:
            raise ValueError(
                f"RoPEWithALiBi: heads must be for the {num_heads} heads of the layer, "
                f"got {len(heads)}"
            )
        slopes = zip(slope_numbers(num_heads), heads, strict=True)
        return tuple(slope if chosen else 0.0 for slope, chosen in slopes)

    def slopes(self, num_heads: int, device: torch.device | str) -> Tensor:
        slopes = self.slope_numbers(num_heads)
        return for_heads(slopes, torch.float32, torch.device(device)).flatten()
