"""timm's attention layers with a sigmoid; `sigmoid_attention.integrations.timm` installs them.

Shape letters: B images, N tokens, C model dim, H heads, G key heads, D head dim.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.attention import BiasPolicy, NegLogLength, sigmoid_attention
from sigmoid_attention.attention.impl import reference
from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.integrations.importing import remedy

try:
    from timm.layers.attention import Attention, AttentionRope
    from timm.layers.patch_embed import PatchEmbed
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat
    from timm.models.eva import EvaAttention
    from timm.models.vision_transformer import ATTN_LAYERS
except (ImportError, RuntimeError) as error:
    raise ImportError(remedy("timm", "1.0.23 or newer (tested to 1.0.31)", error)) from error

__all__ = [
    "ATTN_LAYERS",
    "CLASSES",
    "PatchEmbed",
    "SigmoidAttention",
    "SigmoidAttentionRope",
    "SigmoidBias",
    "SigmoidEvaAttention",
    "SigmoidLayer",
]

SigmoidBias = float | BiasPolicy


class SigmoidLayer(nn.Module):
    """The common part of timm's attention classes, with the sigmoid in place of the softmax.

    ``sigmoid_bias`` is a number, a policy, or None for -log n with n the tokens of the first call,
    which stays n for images of other sizes. A mask hides how many tokens there are, so that with
    None the first call takes none.
    """

    sigmoid_bias: SigmoidBias | None

    def __init__(self, *args: Any, sigmoid_bias: SigmoidBias | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sigmoid_bias = sigmoid_bias
        self.first_tokens: int | None = None

    def _bias(self, tokens: int, attn_mask: Tensor | None) -> SigmoidBias:
        if self.sigmoid_bias is not None:
            return self.sigmoid_bias
        if self.first_tokens is None:
            if attn_mask is not None:
                raise ValueError(
                    "sigmoid_bias: under a mask the number of tokens is not known to be that of "
                    "training; give it, e.g. convert(model, NegLogLength(197))"
                )
            self.first_tokens = tokens
        return NegLogLength(self.first_tokens)

    def _answer(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        """The output (B, N, C) of query (B, H, N, D), key and value (B, G, N, D), as in timm."""
        module: Any = self
        settings: dict[str, Any] = {
            "bias": self._bias(key.shape[2], attn_mask),
            "scale": module.scale,
            "is_causal": is_causal,
            "enable_gqa": True,
        }
        # Norms and rotations answer in fp32 under autocast.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if module.fused_attn:
            dropout_p = module.attn_drop.p if self.training else 0.0
            out = sigmoid_attention(query, key, value, attn_mask, dropout_p=dropout_p, **settings)
        else:
            # Without the fused switch the weights exist, and pass through attn_drop, where tools
            # that draw them listen. Attention is linear in its values, hence the identity.
            identity = torch.eye(key.shape[2], dtype=value.dtype, device=value.device)
            identity = identity.expand(*key.shape[:3], -1)
            weights = sigmoid_attention(
                query, key, identity, attn_mask, impl="reference", **settings
            )
            out = reference.weighted_sum(module.attn_drop(weights), value)
        out = module.norm(out.transpose(1, 2).flatten(2))
        # Gates came to timm after 1.0.23.
        if getattr(self, "gate", None) is not None:
            out = out * module.gate(x).sigmoid()
        return module.proj_drop(module.proj(out))

    def __prepare_scriptable__(self) -> nn.Module:
        raise NotImplementedError(
            f"{type(self).__name__} cannot be scripted; torch.jit.trace and torch.export take it"
        )

    def extra_repr(self) -> str:
        # A Learned bias is a submodule, and printed as such.
        return "" if isinstance(self.sigmoid_bias, nn.Module) else f"bias={self.sigmoid_bias}"


class SigmoidAttention(SigmoidLayer, Attention):
    """timm's ``Attention`` with sigmoid(q.k / sqrt(D) + b) in the place of its softmax.

    For ``attn_layer=``; constructor, parameters and the arguments of ``forward`` are timm's, and
    so is the fused switch: without it the definition in plain PyTorch runs. ``sigmoid_bias`` is
    usually set by `convert`; None stands for -log n, n being the tokens of the first call.

    Example:
        >>> layer = SigmoidAttention(32, num_heads=4, sigmoid_bias=NegLogLength(17))
        >>> layer(torch.randn(2, 17, 32)).shape
        torch.Size([2, 17, 32])
    """

    @leaf_in_fx
    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x (B, N, C); ``attn_mask`` boolean, True = attend, or floating and added."""
        query, key, value = _heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        query, key = self.q_norm(query), self.k_norm(key)
        return self._answer(x, query, key, value, attn_mask, is_causal)


class SigmoidAttentionRope(SigmoidLayer, AttentionRope):
    """timm's ``AttentionRope`` with the sigmoid."""

    @leaf_in_fx
    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """x (B, N, C), ``rope`` the rotations of the tokens after the prefix."""
        if self.qkv is not None:
            query, key, value = _heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
        else:
            key_heads = getattr(self, "num_kv_heads", self.num_heads)
            query, key, value = _separate(self, x, key_heads)
        query, key = _rotated(self, self.q_norm(query), self.k_norm(key), rope)
        return self._answer(x, query, key, value, attn_mask, is_causal)


class SigmoidEvaAttention(SigmoidLayer, EvaAttention):
    """timm's ``EvaAttention``, of EVA and DINOv3, with the sigmoid."""

    @leaf_in_fx
    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """x (B, N, C), ``rope`` the rotations of the tokens after the prefix."""
        if self.qkv is None:
            query, key, value = _separate(self, x, self.num_heads)
        else:
            qkv = self.qkv(x)
            if self.q_bias is not None:
                qkv = qkv + torch.cat((self.q_bias, self.k_bias, self.v_bias)).to(qkv.dtype)  # pyright: ignore
            query, key, value = _heads(qkv, 3 * self.num_heads).chunk(3, dim=1)
        query, key = _rotated(self, self.q_norm(query), self.k_norm(key), rope)
        return self._answer(x, query, key, value, attn_mask, is_causal)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, heads, N, D) of (B, N, heads * D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _separate(module: Any, x: Tensor, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _heads(module.q_proj(x), module.num_heads),
        _heads(module.k_proj(x), key_heads),
        _heads(module.v_proj(x), key_heads),
    )


def _rotated(module: Any, query: Tensor, key: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Query and key, rotated except for the prefix tokens."""
    if rope is None:
        return query, key
    prefix = module.num_prefix_tokens

    def turned(x: Tensor) -> Tensor:
        rest = apply_rot_embed_cat(x[:, :, prefix:], rope, half=module.rotate_half)
        return torch.cat((x[:, :, :prefix], rest), dim=2)

    return turned(query), turned(key)


# What becomes of timm's classes.
CLASSES: dict[type[nn.Module], type[SigmoidLayer]] = {
    Attention: SigmoidAttention,
    AttentionRope: SigmoidAttentionRope,
    EvaAttention: SigmoidEvaAttention,
}
