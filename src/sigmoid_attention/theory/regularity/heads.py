"""The query, key and value maps of each head of an attention layer, in float64, for its bounds.

Shape letters: H query heads, N tokens, D head dim, C channels, O channels of an affine map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import arguments, masking
from sigmoid_attention.attention.bias import Bias, BiasPolicy
from sigmoid_attention.attention.impl import reference
from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.nn.state_bias import InputBias
from sigmoid_attention.theory.regularity.domain import Domain, spectral_norm


@dataclass(frozen=True)
class NormedMap:
    """x -> W x + c, followed by an optional norm of the whole vector with gain g and offset.

    The norm divides by sqrt(mean of squares + eps); a layer norm subtracts the mean first. Its
    Jacobian is g times a projection, divided by that root. The norm of the Jacobian is at most
    max |g| / sqrt(eps), and the length of the output at most max |g| sqrt(D) plus the offset.
    """

    weight_OC: Tensor
    offset_O: Tensor
    gain_O: Tensor | None = None
    shift_O: Tensor | None = None
    eps: float = 0.0
    centred: bool = False

    def reach(self, domain: Domain) -> float:
        """An upper bound on the norm of the output on the domain."""
        plain = domain.reach(self.weight_OC, self.offset_O)
        if self.gain_O is None:
            return plain
        size = len(self.gain_O)
        root = min(size**0.5, plain / self.eps**0.5)
        shift = 0.0 if self.shift_O is None else float(self.shift_O.norm())
        return float(self.gain_O.abs().max()) * root + shift

    def steepness(self) -> float:
        """An upper bound on the norm of the Jacobian at every input."""
        plain = spectral_norm(self.weight_OC)
        if self.gain_O is None:
            return plain
        return float(self.gain_O.abs().max()) / self.eps**0.5 * plain


@dataclass(frozen=True)
class HeadMaps:
    """The maps of one head: query, key, and value multiplied by the output projection."""

    query: NormedMap
    key: NormedMap
    value: NormedMap


@dataclass(frozen=True)
class Heads:
    """The numbers of an attention layer over N tokens that its bounds depend on.

    ``bias_HNN`` holds the terms added to the scaled products: bias and ALiBi. ``visible_NN`` is
    True where a query sees a key. A rotation does not change norms, so RoPE is left out.
    """

    heads: list[HeadMaps]
    activation: str
    scale: float
    softcap: float | None
    bias_HNN: Tensor
    visible_NN: Tensor
    offset_C: Tensor

    @classmethod
    def of(cls, layer: Attention, tokens: int, gain_C: Tensor | None = None) -> "Heads":
        """Read the maps from a layer; ``gain_C`` is a LayerScale that follows it.

        Raises:
            TypeError: an argument of a wrong type.
            ValueError: a bias that depends on the logits of a row or on the input, an option of the
                layer that no bound follows, or fewer than one token.
        """
        arguments.instance("layer", layer, Attention, "an Attention layer")
        arguments.whole("tokens", tokens, 1, "1 or more")
        if gain_C is not None:
            arguments.tensor("gain_C", gain_C)
        for option in ("gate", "value_residual", "mass_exponent"):
            if getattr(layer, option) is not None:
                raise ValueError(f"{option}: no bound here follows it")
        if isinstance(layer.bias, InputBias):
            raise ValueError("bias: StateBias depends on the input, which no bound here follows")
        gain_C = torch.ones(layer.dim) if gain_C is None else gain_C
        output_CHD = (_weight(layer.output) * _double(gain_C)[:, None]).unflatten(
            1, (layer.num_heads, -1)
        )
        share = layer.num_heads // layer.num_kv_heads
        heads = []
        for h in range(layer.num_heads):
            value = _part(layer.value, layer.num_kv_heads, h // share)
            output = output_CHD[:, h]
            heads.append(
                HeadMaps(
                    _normed(_part(layer.query, layer.num_heads, h), layer.qk_norm.query),
                    _normed(_part(layer.key, layer.num_kv_heads, h // share), layer.qk_norm.key),
                    NormedMap(output @ value.weight_OC, output @ value.offset_O),
                )
            )
        positions = masking.query_positions(tokens, tokens, torch.device("cpu"))
        offset_NN = masking.offsets(positions, tokens)
        seen = masking.in_window(
            offset_NN, masking.effective_window(layer.is_causal, layer.window_size)
        )
        visible_NN = torch.ones(tokens, tokens, dtype=torch.bool) if seen is None else seen
        return cls(
            heads,
            layer.activation,
            layer.head_dim**-0.5,
            layer.softcap,
            _bias(layer, offset_NN, visible_NN),
            visible_NN,
            _offset(layer.output) * _double(gain_C),
        )

    def logits(self, head: HeadMaps, domain: Domain) -> float:
        """An upper bound on |scaled product| of any query and key on the domain."""
        largest = self.scale * head.query.reach(domain) * head.key.reach(domain)
        return largest if self.softcap is None else min(largest, self.softcap)


@dataclass(frozen=True)
class _Rows:
    """The rows of a call for a bias policy, without any logits."""

    heads: int
    visible_NN: Tensor
    dtype: torch.dtype = torch.float64

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def visible_counts(self) -> Tensor:
        return self.visible_NN.sum(-1, keepdim=True)

    def row_lse(self) -> Tensor:
        raise ValueError("bias: RowLSE depends on the logits of a row, which no bound here follows")

    def mean_logits(self, means: Tensor | None = None) -> Tensor:
        raise ValueError(
            "bias: CentredKeys depends on the keys, which no bound here follows; "
            "the recipe 'paper' trains without it"
        )

    def resolved(self, bias: Bias) -> float | Tensor:
        return bias.resolve(self) if isinstance(bias, BiasPolicy) else bias

    def aligned(self, rows_BHQ: Tensor) -> Tensor:
        raise ValueError("bias: it depends on the queries, which no bound here follows")


def _bias(layer: Attention, offset_NN: Tensor, visible_NN: Tensor) -> Tensor:
    bias = torch.zeros(layer.num_heads, *visible_NN.shape, dtype=torch.float64)
    if layer.bias is not None:
        resolved = _Rows(layer.num_heads, visible_NN).resolved(layer.bias)
        added = torch.as_tensor(resolved, dtype=torch.float64).detach().cpu()
        bias = bias + (added[0] if added.dim() == 4 else added)
    slopes = layer.position.slopes(layer.num_heads, "cpu")
    if slopes is not None:
        bias = bias + reference.position_bias(offset_NN, slopes, torch.float64)
    return bias


def _double(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


def _weight(linear: nn.Linear) -> Tensor:
    return _double(linear.weight)


def _offset(linear: nn.Linear) -> Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features, dtype=torch.float64)
    return _double(linear.bias)


def _part(linear: nn.Linear, parts: int, index: int) -> NormedMap:
    weight = _weight(linear).unflatten(0, (parts, -1))[index]
    return NormedMap(weight, _offset(linear).unflatten(0, (parts, -1))[index])


def _normed(plain: NormedMap, norm: nn.Module) -> NormedMap:
    if isinstance(norm, nn.Identity):
        return plain
    shift = getattr(norm, "bias", None)
    return NormedMap(
        plain.weight_OC,
        plain.offset_O,
        _double(norm.weight),  # pyright: ignore[reportArgumentType]
        None if shift is None else _double(shift),
        norm.eps,  # pyright: ignore[reportArgumentType]
        isinstance(norm, nn.LayerNorm),
    )
