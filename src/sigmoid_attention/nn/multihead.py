"""A replacement for ``torch.nn.MultiheadAttention`` that weighs keys by a sigmoid.

Shape letters: N batch, L queries, S keys, E embedding dim, H heads, D head dim, T tokens of all
nested sequences.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.attention import (
    BiasPolicy,
    arguments,
    sigmoid_attention,
    sigmoid_varlen_attention,
    validation,
)
from sigmoid_attention.attention.dispatch import Implementation, check_impl
from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.nn.sizes import positive_whole, probability, switch

SigmoidBias = float | BiasPolicy


class SigmoidMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with sigmoid(q.k / sqrt(D) + b) in the place of its softmax.

    Constructor, parameters, state dict, arguments of ``forward`` and shapes are torch's, so it
    can replace that layer everywhere, also in ``nn.TransformerEncoderLayer``. In evaluation mode
    torch's layers have a fast path that computes a softmax from the weights of their attention
    without calling it. They never take it with this module.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first,
            device, dtype: as in torch; ``bias`` is that of the projections.
        sigmoid_bias: b, a number or a bias policy, usually ``NegLogLength(n)`` with n the number
            of keys in training. A `Learned` adds the key ``sigmoid_bias.value`` to the state dict,
            a `LearnedCentring` the key ``sigmoid_bias.strength``.
        impl: the implementation of the sigmoid operator.

    Raises ``TypeError`` for another kind of bias, and the errors of torch's constructor.
    Source: Ramapuram et al. 2024, section 2.

    Example:
        >>> from sigmoid_attention import NegLogLength
        >>> layer = SigmoidMultiheadAttention(
        ...     32, 4, batch_first=True, sigmoid_bias=NegLogLength(64)
        ... )
        >>> x = torch.randn(2, 10, 32)
        >>> out, weights = layer(x, x, x)
        >>> out.shape, weights.shape
        (torch.Size([2, 10, 32]), torch.Size([2, 10, 10]))
    """

    sigmoid_bias: SigmoidBias

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        sigmoid_bias: SigmoidBias,
        impl: Implementation = "auto",
    ) -> None:
        embed_dim = positive_whole("embed_dim", embed_dim)
        num_heads = positive_whole("num_heads", num_heads)
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads ({num_heads}), got {embed_dim}"
            )
        bias, add_bias_kv = switch("bias", bias), switch("add_bias_kv", add_bias_kv)
        add_zero_attn = switch("add_zero_attn", add_zero_attn)
        batch_first = switch("batch_first", batch_first)
        kdim = None if kdim is None else positive_whole("kdim", kdim)
        vdim = None if vdim is None else positive_whole("vdim", vdim)
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim,
            batch_first, device, dtype,
        )  # fmt: skip
        self.weigh_by_sigmoid(sigmoid_bias, impl)

    @staticmethod
    def check_settings(
        module: nn.MultiheadAttention, sigmoid_bias: object, impl: Implementation
    ) -> None:
        """Check the arguments of the operator before the module is changed."""
        validation.layer_bias(sigmoid_bias, module.num_heads, "sigmoid_bias")
        probability("dropout", module.dropout)
        check_impl(impl)

    def extra_repr(self) -> str:
        # A Learned bias is a submodule, and printed as such.
        shown = (
            {} if isinstance(self.sigmoid_bias, nn.Module) else {"sigmoid_bias": self.sigmoid_bias}
        )
        shown = {"embed_dim": self.embed_dim, "num_heads": self.num_heads, **shown}
        return ", ".join(f"{name}={value}" for name, value in shown.items())

    def weigh_by_sigmoid(self, sigmoid_bias: SigmoidBias, impl: Implementation) -> None:
        """Set the attributes that torch's constructor does not, in a new module or a torch one."""
        self.check_settings(self, sigmoid_bias, impl)
        self.sigmoid_bias = sigmoid_bias
        self.impl: Implementation = impl
        # Torch's layers and encoders take their fast path only where this is true. Nothing else
        # reads it once the parameters are there.
        self._qkv_same_embed_dim = False

    @leaf_in_fx
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, with ``need_weights``, the weights after dropout.

        Args:
            query: (N, L, E) if ``batch_first``, else (L, N, E); (L, E) without a batch.
            key, value: likewise with S tokens and kdim or vdim channels.
            key_padding_mask: (N, S) or (S,), boolean, **True = ignored** as in torch, or floating
                and added to the logits.
            attn_mask: (L, S) or (N * H, L, S), likewise.
            average_attn_weights: return their mean over heads, (N, L, S), not (N, H, L, S).
            is_causal: states that ``attn_mask``, which is required then, is the causal mask; the
                mask itself is not read.

        With ``need_weights=False`` all three may be nested tensors, without masks; so is the
        output. Raises ``TypeError`` for wrong types, ``ValueError`` for shapes and masks that do
        not fit, and ``NotImplementedError`` for options without support for nested tensors.
        """
        need_weights = arguments.switch("need_weights", need_weights)
        average_attn_weights = arguments.switch("average_attn_weights", average_attn_weights)
        is_causal = arguments.switch("is_causal", is_causal)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            arguments.tensor(name, tensor)
        if query.is_nested or key.is_nested or value.is_nested:
            masks = (key_padding_mask, attn_mask)
            return self._forward_nested(query, key, value, masks, need_weights), None
        batched = self._check(query, key, value)
        query_NLE = self._batch_first(query)
        key_NSE = query_NLE if key is query else self._batch_first(key)
        value_NSE = key_NSE if value is key else self._batch_first(value)
        N, L, S = *query_NLE.shape[:2], key_NSE.shape[1]
        self._check_masks(key_padding_mask, attn_mask, is_causal, (N, L, S), batched, query.device)
        query_NLE, key_NSE, value_NSE = self._projected(query_NLE, key_NSE, value_NSE)
        key_NSE, value_NSE = self._with_extra_keys(key_NSE, value_NSE)
        extra = key_NSE.shape[1] - S
        # The operator aligns causality at the last key: that must be the last token.
        causal = is_causal and L == S and extra == 0
        mask = self._visible(
            None if key_padding_mask is None else key_padding_mask.view(-1, 1, 1, S),
            None if attn_mask is None or causal else self._per_head(attn_mask),
            extra,
            query_NLE.dtype,
        )
        out_NHLD, weights_NHLS = self._attended(
            self._heads(query_NLE).transpose(1, 2),
            self._heads(key_NSE).transpose(1, 2),
            self._heads(value_NSE).transpose(1, 2),
            mask,
            causal,
            need_weights,
        )
        out = self.out_proj(out_NHLD.transpose(1, 2).flatten(2))
        if not batched:
            out = out[0]
        elif not self.batch_first:
            out = out.transpose(0, 1)
        if weights_NHLS is None:
            return out, None
        weights = weights_NHLS.mean(1) if average_attn_weights else weights_NHLS
        return out, weights if batched else weights[0]

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Check the shapes; return whether there is a batch dimension."""
        self._check_inputs(query, key, value)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tensor.dim() not in (2, 3) or tensor.dim() != query.dim():
                raise ValueError(
                    f"{name} must have 3 dimensions, or 2 without a batch, like query, "
                    f"got {tuple(tensor.shape)}"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value must have key's tokens and batch, "
                f"got {tuple(value.shape)} and {tuple(key.shape)}"
            )
        batch = 0 if self.batch_first else 1
        if query.dim() == 3 and key.shape[batch] != query.shape[batch]:
            raise ValueError(
                f"key must have query's batch in dimension {batch}, "
                f"got {tuple(key.shape)} and {tuple(query.shape)}"
            )
        return query.dim() == 3

    def _check_inputs(self, *inputs: Tensor) -> None:
        dims = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else (self.in_proj_weight,) * 3
        for (name, dim), tensor, weight in zip(dims.items(), inputs, weights, strict=True):
            validation.layer_input(name, tensor, weight)
            if tensor.dim() == 0 or tensor.shape[-1] != dim:
                raise ValueError(f"{name} must have {dim} channels, got {tuple(tensor.shape)}")

    def _check_masks(
        self,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        is_causal: bool,
        sizes: tuple[int, int, int],
        batched: bool,
        device: torch.device,
    ) -> None:
        N, L, S = sizes
        for name, mask, shapes in (
            ("key_padding_mask", key_padding_mask, ((N, S) if batched else (S,),)),
            ("attn_mask", attn_mask, ((L, S), (N * self.num_heads, L, S))),
        ):
            if mask is None:
                continue
            arguments.dense(name, mask)
            validation.on_device(name, mask, device)
            if mask.dtype != torch.bool and mask.dtype not in validation.FLOATS:
                raise ValueError(
                    f"{name} must be boolean (True = ignored) or floating, got {mask.dtype}"
                )
            if tuple(mask.shape) not in shapes:
                wanted = " or ".join(map(str, shapes))
                raise ValueError(f"{name} must be {wanted}, got {tuple(mask.shape)}")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal: is a hint about attn_mask, which must be given with it")

    def _batch_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is None
            else self.in_proj_weight.chunk(3)
        )
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return tuple(F.linear(*each) for each in zip(inputs, weights, biases, strict=True))

    def _with_extra_keys(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append the learned key and value, then a key and a value of zeros."""
        batch = key.shape[0]
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat((key, self.bias_k.to(key.dtype).expand(batch, -1, -1)), 1)
            value = torch.cat((value, self.bias_v.to(value.dtype).expand(batch, -1, -1)), 1)
        if self.add_zero_attn:
            # Zeros do not change the output, but the weights have a column for them, as in torch.
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        return key, value

    def _per_head(self, attn_mask: Tensor) -> Tensor:
        if attn_mask.dim() == 2:
            return attn_mask
        return attn_mask.unflatten(0, (-1, self.num_heads))

    @staticmethod
    def _visible(
        padding: Tensor | None, attn_mask: Tensor | None, extra: int, dtype: torch.dtype
    ) -> Tensor | None:
        """One mask as the operator takes it: boolean with True = attend, or floating."""
        masks = [mask for mask in (padding, attn_mask) if mask is not None]
        if not masks:
            return None
        if all(mask.dtype == torch.bool for mask in masks):
            hidden = masks[0] if len(masks) == 1 else masks[0] | masks[1]
            return F.pad(~hidden, (0, extra), value=True)
        added = [
            torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
            if mask.dtype == torch.bool
            else mask
            for mask in masks
        ]
        return F.pad(added[0] if len(added) == 1 else added[0] + added[1], (0, extra))

    def _attended(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Output (N, H, L, D) and, with need_weights, the weights (N, H, L, S) after dropout."""
        settings: dict[str, Any] = {
            "is_causal": causal,
            "bias": self.sigmoid_bias,
            "dropout_p": self.dropout if self.training else 0.0,
            "impl": self.impl,
        }
        if not need_weights:
            return sigmoid_attention(query, key, value, mask, **settings), None
        # Attention is linear in its values: the identity, appended to the values, gives the weights
        # after the same dropout. With a tolerance of 0 no visible key is skipped.
        identity = torch.eye(key.shape[2], dtype=value.dtype, device=value.device)
        both = torch.cat((value, identity.expand(*value.shape[:2], -1, -1)), -1)
        answer = sigmoid_attention(query, key, both, mask, skip_tolerance=0.0, **settings)
        out, weights = answer.split((value.shape[3], key.shape[2]), dim=-1)
        return out, weights

    def _forward_nested(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        masks: tuple[Tensor | None, Tensor | None],
        need_weights: bool,
    ) -> Tensor:
        """Nested sequences go to the operator for packed sequences."""
        if not (query.is_nested and key.is_nested and value.is_nested):
            raise ValueError("query, key, value must all be nested or none of them")
        if any(mask is not None for mask in masks):
            raise ValueError("key_padding_mask, attn_mask: nested sequences take none")
        if need_weights:
            raise NotImplementedError("need_weights: nested sequences form no array of weights")
        if self.bias_k is not None or self.add_zero_attn:
            raise NotImplementedError("add_bias_kv, add_zero_attn: not for nested sequences")
        query_TE, ends_q = _packed(query)
        key_TE, ends_k = (query_TE, ends_q) if key is query else _packed(key)
        value_TE, ends_v = (key_TE, ends_k) if value is key else _packed(value)
        self._check_inputs(query_TE, key_TE, value_TE)
        if ends_k.shape != ends_q.shape or not ends_v.equal(ends_k):
            raise ValueError(
                "key, value must have as many sequences as query, and the same lengths, "
                f"got {ends_k.diff().tolist()} and {ends_v.diff().tolist()}"
            )
        query_TE, key_TE, value_TE = self._projected(query_TE, key_TE, value_TE)
        out_THD = sigmoid_varlen_attention(
            self._heads(query_TE),
            self._heads(key_TE),
            self._heads(value_TE),
            ends_q,
            ends_k,
            int(ends_q.diff().max()),
            int(ends_k.diff().max()),
            bias=self.sigmoid_bias,
            dropout_p=self.dropout if self.training else 0.0,
            impl=self.impl,
        )
        out_TE = self.out_proj(out_THD.flatten(1))
        if query.layout == torch.jagged:
            return torch.nested.nested_tensor_from_jagged(out_TE, ends_q)
        return torch.nested.as_nested_tensor(list(out_TE.split(ends_q.diff().tolist())))


def _packed(nested: Any) -> tuple[Tensor, Tensor]:
    """Tokens (T, E) of all sequences in a row, and the offsets of the sequences, from 0 to T."""
    if nested.layout == torch.jagged:
        if nested.lengths() is not None:
            raise ValueError("query, key, value: jagged tensors must have no gaps between rows")
        return nested.values(), nested.offsets()
    parts = nested.unbind()
    lengths = torch.tensor([0, *(part.shape[0] for part in parts)], device=nested.device)
    return torch.cat(parts), lengths.cumsum(0)
