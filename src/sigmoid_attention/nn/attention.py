"""The attention layer: one class for sigmoid and softmax, which share everything but the bias.

Shape letters: B batch, N tokens, C model dim, H heads, G key heads, D head dim.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import (
    AttentionStatistics,
    BiasPolicy,
    CentredKeys,
    Implementation,
    NegLogLength,
    arguments,
    attention_statistics,
    sigmoid_attention,
    sigmoid_attention_with_mass,
    validation,
)
from sigmoid_attention.attention.bias import Bias
from sigmoid_attention.attention.dispatch import check_impl
from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.nn.cache import KVCache, Unchanged
from sigmoid_attention.nn.cached_rows import bias_of_new_tokens
from sigmoid_attention.nn.gate import GATES, Gate
from sigmoid_attention.nn.layer_options import sigmoid_parts
from sigmoid_attention.nn.norm import QKNorm
from sigmoid_attention.nn.position import AttentionPosition, EmbeddingPosition, token_positions
from sigmoid_attention.nn.sizes import head_sizes, one_of, positive_number, positive_whole, switch
from sigmoid_attention.nn.softmax import softmax_attention, softmax_statistics
from sigmoid_attention.nn.value_residual import ValueResidual, check_first_value

ACTIVATIONS = ("sigmoid", "softmax")
REACHES = (None, "trained")


class Attention(nn.Module):
    """Multi-head self-attention with a sigmoid or, otherwise unchanged, with a softmax.

    x -> query, key, value -> QK-norm -> position -> operator -> output, each projection linear.
    The output is the same in one pass, with a cache, in chunks and under padding: ``max_seq_len``
    sets the bias once, and a mean of keys is over the keys that a query sees.

    Args:
        dim: channels of the input and the output.
        num_heads: query heads.
        max_seq_len: n, the training length in tokens; longer inputs get the same bias.
        num_kv_heads: key and value heads, a divisor of ``num_heads``; None for ``num_heads``.
        head_dim: channels of a head; None for dim / num_heads.
        activation: "sigmoid" or "softmax".
        bias: a number or a bias policy for the sigmoid. None is ``NegLogLength(n)`` with
            n = max_seq_len, or the number of keys in the window where that is smaller: n is the
            largest number of keys that a query sees in training. A softmax ignores the bias.
        position: an `AttentionPosition` such as ``RoPE()`` or ``ALiBi()``; None for none.
        qk_norm: "rms", "layer" or None, applied to each head before the position.
        is_causal: a token sees no later token. Required for a cache.
        window_size: (left, right) tokens that a token sees beside itself, -1 for no limit.
        reach: "trained" limits ``window_size`` to the max_seq_len - 1 tokens beside a token that it
            can see in training. In longer inputs no head then meets a distance, or a number of
            keys, that it was not trained with, and time is linear in the length. None: no limit.
        softcap: bounds the scaled dot product smoothly to (-softcap, softcap).
        dropout_p: probability of dropping an attention weight in training.
        linear_bias: give the four projections an additive term.
        centred_keys: subtract a learned share of the mean of the visible keys from each key, see
            `LearnedCentring`.
        state_bias: make the bias linear in the input of the layer, see `StateBias`. It starts at
            ``bias``: a number, `Constant`, `NegLogLength`, `NegLogEffectiveLength` or `Learned`.
        gate: "head" or "element" multiplies the output before its projection by a `Gate`.
        value_residual: mix the values with those of the model's first layer, see `ValueResidual`;
            ``forward`` then needs ``first_value``.
        mass_exponent: γ, a number, or "learned" for one per head from 1; divides each row by m^γ,
            see `MassExponent`.
        norm_eps: the epsilon of the QK-norm.
        impl: the implementation of the sigmoid operator.

    A softmax layer ignores ``centred_keys``, ``state_bias`` and ``mass_exponent``, with a
    UserWarning once per process.

    Raises ``TypeError`` for a wrong type and ``ValueError`` for values that do not fit together.
    Source: Ramapuram et al. 2024, section 2, and section 5 for the order of norm and position.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn import RoPE
        >>> layer = Attention(32, num_heads=4, max_seq_len=64, position=RoPE(), qk_norm="rms")
        >>> layer(torch.randn(2, 10, 32)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        max_seq_len: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        activation: str = "sigmoid",
        bias: float | BiasPolicy | None = None,
        position: AttentionPosition | None = None,
        qk_norm: str | None = None,
        is_causal: bool = True,
        window_size: tuple[int, int] = (-1, -1),
        reach: str | None = None,
        softcap: float | None = None,
        dropout_p: float = 0.0,
        linear_bias: bool = False,
        centred_keys: bool = False,
        state_bias: bool = False,
        gate: str | None = None,
        value_residual: bool = False,
        mass_exponent: float | str | None = None,
        norm_eps: float = 1e-5,
        impl: Implementation = "auto",
    ) -> None:
        super().__init__()
        dim, num_heads = positive_whole("dim", dim), positive_whole("num_heads", num_heads)
        max_seq_len = positive_whole("max_seq_len", max_seq_len)
        if num_kv_heads is not None:
            num_kv_heads = positive_whole("num_kv_heads", num_kv_heads)
        if head_dim is not None:
            head_dim = positive_whole("head_dim", head_dim)
        num_kv_heads, head_dim = head_sizes(dim, num_heads, num_kv_heads, head_dim)
        one_of("activation", activation, ACTIVATIONS)
        one_of("gate", gate, GATES)
        one_of("reach", reach, REACHES)
        linear_bias = switch("linear_bias", linear_bias)
        value_residual = switch("value_residual", value_residual)
        # Checked here too: the operator would refuse them after a cache has been written.
        validation.logit_options(
            head_dim,
            scale=None,
            softcap=softcap,
            is_causal=is_causal,
            window_size=window_size,
            dropout_p=dropout_p,
        )
        check_impl(impl)
        norm_eps = positive_number("norm_eps", norm_eps)
        position = AttentionPosition() if position is None else position
        if not isinstance(position, AttentionPosition):
            embedding = isinstance(position, EmbeddingPosition)
            raise TypeError(
                f"position must act inside attention, like RoPE(), ALiBi() or RoPEWithALiBi(), "
                f"got {type(position).__name__ if embedding else arguments.shown(position)}"
                f"{', which belongs to the embeddings of a model' if embedding else ''}"
            )
        position.check(head_dim)
        # Refuses a choice of heads for another number of heads.
        position.slopes(num_heads, "cpu")

        self.dim, self.num_heads = dim, num_heads
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.max_seq_len, self.activation = max_seq_len, activation
        self.position = position
        if reach is not None:
            left, right = (_limited(side, max_seq_len - 1) for side in window_size)
            # A causal token sees nothing to its right.
            window_size = left, window_size[1] if is_causal else right
        self.is_causal, self.window_size = is_causal, window_size
        self.softcap, self.dropout_p = softcap, dropout_p
        self.impl: Implementation = impl
        self.query = nn.Linear(dim, num_heads * head_dim, bias=linear_bias)
        self.key = nn.Linear(dim, num_kv_heads * head_dim, bias=linear_bias)
        self.value = nn.Linear(dim, num_kv_heads * head_dim, bias=linear_bias)
        self.output = nn.Linear(num_heads * head_dim, dim, bias=linear_bias)
        self.qk_norm = QKNorm(qk_norm, head_dim, norm_eps)
        self.gate = None if gate is None else Gate(gate, dim, num_heads, head_dim)
        self.value_residual = ValueResidual() if value_residual else None
        bias = NegLogLength(self._most_keys()) if bias is None else bias
        self.bias, self.mass_exponent = sigmoid_parts(
            bias, dim, num_heads, activation, centred_keys, state_bias, mass_exponent
        )

    def extra_repr(self) -> str:
        shown = {
            "activation": self.activation,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads if self.num_kv_heads != self.num_heads else None,
            "max_seq_len": self.max_seq_len,
            # A Learned bias is a submodule, and printed as such.
            "bias": None if isinstance(self.bias, nn.Module) else self.bias,
            "position": self.position if type(self.position) is not AttentionPosition else "none",
            "is_causal": self.is_causal,
            "window_size": self.window_size if max(self.window_size) >= 0 else None,
            "softcap": self.softcap,
            "dropout_p": self.dropout_p or None,
        }
        return ", ".join(f"{name}={value}" for name, value in shown.items() if value is not None)

    def _most_keys(self) -> int:
        left, right = self.window_size
        right = 0 if self.is_causal else right
        in_window = self.max_seq_len if min(left, right) < 0 else left + 1 + right
        return min(self.max_seq_len, in_window)

    @leaf_in_fx
    def forward(
        self,
        x: Tensor,
        *,
        cache: KVCache | None = None,
        attn_mask: Tensor | None = None,
        first_value: Tensor | None = None,
        return_statistics: bool = False,
        return_value: bool = False,
    ) -> Tensor | tuple[Any, ...]:
        """Read x (B, N, dim), after the tokens in ``cache``; return (B, N, dim).

        ``attn_mask`` is (B, cached + N), boolean, True for a real token; the real tokens of
        a row must stand side by side, since ALiBi and windows count places. Padded places return
        numbers without meaning. ``first_value`` are the values (B, key heads, N, D) of the same
        tokens in the model's first layer; that layer returns them with ``return_value``.

        With ``return_statistics`` or ``return_value`` the answer is a tuple: the output, the
        `AttentionStatistics` of the rows, the values, without what is not asked for. Raises
        ``ValueError`` for other shapes, for a full cache, for a cache with a layer that is not
        causal, and for a ``first_value`` that is missing or that the layer does not take.
        """
        self.check(x)
        return_statistics = switch("return_statistics", return_statistics)
        return_value = switch("return_value", return_value)
        if cache is not None and not self.is_causal:
            raise ValueError("cache: only causal attention can read a sequence in parts")
        if not (cache is None or isinstance(cache, KVCache)):
            raise TypeError(f"cache must be a KVCache or None, got {arguments.shown(cache)}")
        asked = (return_statistics, return_value)
        if cache is None:
            return self._answer(x, None, attn_mask, first_value, *asked)
        with Unchanged(cache):
            return self._answer(x, cache, attn_mask, first_value, *asked)

    def check(self, x: Tensor) -> None:
        """Refuse an input that does not fit the projections."""
        validation.layer_input("x", x, _weight(self.query))
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be (batch, tokens, {self.dim}), got {tuple(x.shape)}")

    def _answer(
        self,
        x: Tensor,
        cache: KVCache | None,
        attn_mask: Tensor | None,
        first_value: Tensor | None,
        return_statistics: bool,
        return_value: bool,
    ) -> Tensor | tuple[Any, ...]:
        query, key, value = self.project(x, 0 if cache is None else cache.length, attn_mask)
        check_first_value(first_value, value, self.value_residual is not None)
        mixed = value
        if self.value_residual is not None:
            mixed = self.value_residual(value, first_value)
        if cache is not None:
            # A cache may have another dtype: a given one, or that of an earlier autocast.
            key, mixed = (stored.to(query.dtype) for stored in cache.append(key, mixed))
        bias = self._bias_of_call(x)
        if cache is not None and isinstance(bias, CentredKeys):
            bias = bias_of_new_tokens(bias, query, cache, self.window_size[0], attn_mask)
        dropout_p = self.dropout_p if self.training else 0.0
        out_BHND = self._operate(query, key, mixed, bias, attn_mask, dropout_p)
        if self.gate is not None:
            out_BHND = out_BHND * self.gate(x)
        out = self.output(out_BHND.transpose(1, 2).flatten(2))
        answer: list[Any] = [out]
        if return_statistics:
            answer.append(self._statistics(query, key, mixed, bias, attn_mask))
        if return_value:
            answer.append(value)
        return out if len(answer) == 1 else tuple(answer)

    def _bias_of_call(self, x: Tensor) -> float | BiasPolicy | None:
        return self.bias.for_call(x) if isinstance(self.bias, BiasPolicy) else self.bias

    @torch.no_grad()
    def weights(self, x: Tensor) -> Tensor:
        """The attention matrix (B, H, N, N) for x (B, N, dim), before dropout and gate.

        Attention is linear in its values, so the operator returns the matrix where the values are
        the identity, with this layer's position, norms, bias and power of the mass.

        Example:
            >>> import torch
            >>> layer = Attention(8, num_heads=2, max_seq_len=4, activation="softmax")
            >>> layer.weights(torch.randn(1, 4, 8)).sum(-1).allclose(torch.ones(1, 2, 4))
            True
        """
        self.check(x)
        query, key, _ = self.project(x, 0, None)
        identity = torch.eye(x.shape[1], dtype=key.dtype, device=x.device)
        value = identity.expand(x.shape[0], self.num_kv_heads, -1, -1)
        return self._operate(query, key, value, self._bias_of_call(x), None, 0.0)

    def new_cache(self, batch: int, length: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for ``length`` tokens, in ``dtype``, or in the dtype of its first keys."""
        return KVCache(batch, self.num_kv_heads, length, self.head_dim, dtype=dtype)

    def project(
        self, x: Tensor, start: int, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value per head after norm and position; the first token is ``start``."""
        batch, tokens, _ = x.shape
        positions_BN = token_positions(batch, tokens, start, attn_mask, x.device)
        query = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key = self.key(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        value = self.value(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)
        query, key = self.qk_norm(query, key)
        query, key = self.position.rotate(query, key, positions_BN)
        return query, key, value

    def _operate(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Bias | None,
        attn_mask: Tensor | None,
        dropout_p: float,
    ) -> Tensor:
        options = self._options(query, attn_mask)
        options["dropout_p"] = dropout_p
        if self.activation == "softmax":
            return softmax_attention(query, key, value, **options)
        options |= {"bias": bias, "impl": self.impl}
        if self.mass_exponent is None:
            return sigmoid_attention(query, key, value, **options)
        rows = self.mass_exponent.operands(query, key, value)
        results = sigmoid_attention_with_mass(*rows, **options)
        return self.mass_exponent(*results).to(query.dtype)

    def _statistics(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Bias | None,
        attn_mask: Tensor | None,
    ) -> AttentionStatistics:
        options = self._options(query, attn_mask)
        if self.activation == "softmax":
            return softmax_statistics(query, key, value, **options)
        return attention_statistics(query, key, value, bias=bias, **options)

    def _options(self, query: Tensor, attn_mask: Tensor | None) -> dict[str, Any]:
        return {
            "attn_mask": None if attn_mask is None else attn_mask[:, None, None],
            "is_causal": self.is_causal,
            "window_size": self.window_size,
            "alibi_slopes": self.position.slopes(self.num_heads, query.device),
            "softcap": self.softcap,
            "enable_gqa": self.num_heads != self.num_kv_heads,
        }


def _limited(side: int, most: int) -> int:
    return most if side < 0 else min(side, most)


def _weight(linear: nn.Module) -> Tensor | None:
    """The weight of the product; None where a hook, wrapper or other class may replace it."""
    if type(linear) is nn.Linear and not ("forward" in vars(linear) or linear._forward_pre_hooks):
        return linear.weight
    return None
