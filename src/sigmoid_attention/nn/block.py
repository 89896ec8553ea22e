"""A transformer block: attention and feed-forward, each on a residual branch with its norms.

Shape letters: B batch, N tokens, C model dim.
"""

from collections.abc import Callable

from torch import Tensor, fx, nn

from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.nn.cache import KVCache
from sigmoid_attention.nn.norm import LayerScale, RMSNorm
from sigmoid_attention.nn.sizes import finite_number, one_of, positive_whole, probability

# The places of norms: before f, after f and after the sum.
NORM_PLACEMENTS = {
    "pre": (True, False, False),
    "post": (False, False, True),
    "hybrid": (True, True, False),
}


class Residual(nn.Module):
    """The residual branch around a layer f, with RMSNorm at the chosen placement.

    pre:    x + s f(norm(x))        post:   norm(x + s f(x))
    hybrid: x + s norm(f(norm(x)))

    s is a LayerScale, or 1. Under hybrid norm the output of a branch has a fixed size, which does
    not depend on the size of a sigmoid's unnormalised rows (Ramapuram et al. 2024, section 5: the
    norm acts after the output projection). Raises ``ValueError`` for another placement.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 2, 8)
        >>> Residual(8, "hybrid")(x, nn.Identity()).shape
        torch.Size([1, 2, 8])
    """

    def __init__(
        self,
        dim: int,
        norm_placement: str = "pre",
        *,
        layer_scale: float | None = None,
        dropout_p: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        one_of("norm_placement", norm_placement, NORM_PLACEMENTS)
        dim, dropout_p = positive_whole("dim", dim), probability("dropout_p", dropout_p)
        self.norm_in, self.norm_out, self.norm_after = (
            RMSNorm(dim, norm_eps) if filled else nn.Identity()
            for filled in NORM_PLACEMENTS[norm_placement]
        )
        self.scale = (
            nn.Identity()
            if layer_scale is None
            else LayerScale(dim, finite_number("layer_scale", layer_scale))
        )
        self.dropout = nn.Dropout(dropout_p)

    def forward(self, x_BNC: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        branch_BNC = self.norm_out(layer(self.norm_in(x_BNC)))
        return self.norm_after(x_BNC + self.dropout(self.scale(branch_BNC)))


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on its own `Residual`.

    Takes and returns x (B, N, dim). With ``return_value`` it returns a pair: x, and the values of
    its attention, which a block with a value residual takes as ``first_value``. ``layer_scale`` is
    the initial value of a trained gain on both branches (1e-4 is usual in vision), None for no
    gain; ``dropout_p`` acts on both branches. Raises ``ValueError`` for an unknown placement.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn import SwiGLU
        >>> block = Block(Attention(16, 2, max_seq_len=8), SwiGLU(16, 48), norm_placement="hybrid")
        >>> block(torch.randn(1, 8, 16)).shape
        torch.Size([1, 8, 16])
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: nn.Module,
        *,
        norm_placement: str = "pre",
        layer_scale: float | None = None,
        dropout_p: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()

        def residual() -> Residual:
            return Residual(
                attention.dim,
                norm_placement,
                layer_scale=layer_scale,
                dropout_p=dropout_p,
                norm_eps=norm_eps,
            )

        self.attention = attention
        self.attention_residual = residual()
        self.feed_forward = feed_forward
        self.feed_forward_residual = residual()

    def forward(
        self,
        x: Tensor,
        *,
        cache: KVCache | None = None,
        attn_mask: Tensor | None = None,
        first_value: Tensor | None = None,
        return_value: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        # Checked before the norm, which comes before the attention; torch.fx traces through both.
        if not isinstance(x, fx.Proxy):
            self.attention.check(x)

        values: list[Tensor] = []

        def attend(normed: Tensor) -> Tensor:
            answer = self.attention(
                normed,
                cache=cache,
                attn_mask=attn_mask,
                first_value=first_value,
                return_value=return_value,
            )
            if not return_value:
                return answer
            values.append(answer[1])
            return answer[0]

        x = self.feed_forward_residual(self.attention_residual(x, attend), self.feed_forward)
        return (x, values[0]) if return_value else x
