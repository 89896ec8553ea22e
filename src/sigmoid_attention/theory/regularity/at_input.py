"""A certified bound on the Jacobian of an attention layer at one input.

Shape letters: N tokens, H heads, D head dim, C channels, R rank of a product.
"""

import copy

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.theory.regularity.attention import Bound
from sigmoid_attention.theory.regularity.domain import spectral_norm
from sigmoid_attention.theory.regularity.heads import Heads, NormedMap


def attention_bound_at(
    layer: Attention,
    x_NC: Tensor,
    *,
    gain_C: Tensor | None = None,
    rows_N: Tensor | None = None,
    columns_N: Tensor | None = None,
) -> Bound:
    r"""A bound on the Jacobian at ``x``, computed from the layer and x alone.

    The bound has the three sums of `attention_bound`, with the logits, weights and slopes at x. The
    norms of the first sum and of each block of the second are computed. The third sum is bounded by
    the matrix of the norms of its blocks. The bounds of heads are added, so cancellation among
    blocks and heads is not counted. Under a softmax the weights p replace sigma', and the mean of
    the row is subtracted from the contribution of each key.

    Args:
        layer: the layer in evaluation mode.
        x_NC: N tokens, alone in their batch.
        gain_C: a LayerScale that follows the layer.
        rows_N, columns_N: the Jacobian norms, at each token, of the norm layers after and before
            this layer. ``jacobian`` then bounds all three; ``reach`` stays that of the layer.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: another shape, values that are not finite, or a bias that depends on logits.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn import Attention
        >>> layer = Attention(8, num_heads=2, max_seq_len=16)
        >>> attention_bound_at(layer, torch.zeros(16, 8)).through_queries
        0.0
    """
    arguments.instance("layer", layer, Attention, "an Attention layer")
    arguments.tensor("x_NC", x_NC)
    if x_NC.dim() != 2 or x_NC.shape[1] != layer.dim or not x_NC.isfinite().all():
        raise ValueError(
            f"x must be finite, of shape (tokens, {layer.dim}), got {tuple(x_NC.shape)}"
        )
    heads = Heads.of(layer, len(x_NC), gain_C)
    exact = copy.deepcopy(layer).cpu().double()
    x = x_NC.detach().cpu().double()
    ones_N = torch.ones(len(x), dtype=x.dtype)
    rows_N = ones_N if rows_N is None else rows_N
    columns_N = ones_N if columns_N is None else columns_N
    with torch.no_grad():
        query, key, _ = (part[0] for part in exact.project(x[None], 0, None))
        share = layer.num_heads // layer.num_kv_heads
        parts = [
            _head(heads, h, x, query[h], key[h // share], rows_N, columns_N)
            for h in range(layer.num_heads)
        ]
        answer = sum(part[0] for part in parts) + heads.offset_C
    through = [float(sum(part[index] for part in parts)) for index in (1, 2, 3)]
    return Bound(sum(through), float(answer.norm(dim=-1).max()), *through)


def _head(
    heads: Heads,
    h: int,
    x_NC: Tensor,
    query_ND: Tensor,
    key_ND: Tensor,
    rows_N: Tensor,
    columns_N: Tensor,
) -> tuple[Tensor, float, float, float]:
    head = heads.heads[h]
    product_NN = heads.scale * query_ND @ key_ND.T
    flat_NN = torch.ones_like(product_NN)
    if heads.softcap is not None:
        bent_NN = (product_NN / heads.softcap).tanh()
        product_NN, flat_NN = heads.softcap * bent_NN, 1 - bent_NN.square()
    logit_NN = product_NN + heads.bias_HNN[h]
    added_NC = x_NC @ head.value.weight_OC.T + head.value.offset_O
    if heads.activation == "sigmoid":
        weight_NN = torch.sigmoid(logit_NN) * heads.visible_NN
        slope_NN = weight_NN * torch.sigmoid(-logit_NN) * flat_NN
        middle_NC = torch.zeros_like(added_NC)
    else:
        weight_NN = logit_NN.masked_fill(~heads.visible_NN, -torch.inf).softmax(-1)
        slope_NN = weight_NN * flat_NN
        middle_NC = weight_NN @ added_NC
    about_NN = (added_NC[None] - middle_NC[:, None]).norm(dim=-1)
    pulled_NN = query_ND.norm(dim=-1)[:, None] * _steep(head.key, x_NC)
    moved_N = _blocks(slope_NN, added_NC, middle_NC, key_ND) * _steep(head.query, x_NC)
    stretch_NN = rows_N[:, None] * columns_N
    return (
        weight_NN @ added_NC,
        spectral_norm(stretch_NN * weight_NN) * head.value.steepness(),
        heads.scale * float((rows_N * moved_N * columns_N).max()),
        heads.scale * spectral_norm(stretch_NN * slope_NN * about_NN * pulled_NN),
    )


def _blocks(slope_NN: Tensor, added_NC: Tensor, middle_NC: Tensor, key_ND: Tensor) -> Tensor:
    """|sum_j slope_ij (w_j - m_i) k_j'| for every query i, (N,), in the span of the w_j."""
    # w - m lies in the span of the w, so R = rank coordinates replace the C channels.
    _, values_R, span_RC = torch.linalg.svd(added_NC, full_matrices=False)
    span_RC = span_RC[values_R > 1e-12 * values_R.max().clamp(min=1e-300)]
    added_NR, middle_NR = added_NC @ span_RC.T, middle_NC @ span_RC.T
    crossed_NRD = torch.einsum("ij,jr,jd->ird", slope_NN, added_NR, key_ND)
    crossed_NRD -= torch.einsum("ir,id->ird", middle_NR, slope_NN @ key_ND)
    return torch.linalg.matrix_norm(crossed_NRD, 2) if len(span_RC) else slope_NN.new_zeros(1)


def _steep(part: NormedMap, x_NC: Tensor) -> Tensor:
    """The norm of the Jacobian of every token's query or key, (N,)."""
    if part.gain_O is None:
        return torch.full((len(x_NC),), spectral_norm(part.weight_OC), dtype=x_NC.dtype)
    return torch.linalg.matrix_norm(_jacobians(part, x_NC), 2)


def _jacobians(part: NormedMap, x_NC: Tensor) -> Tensor:
    """The Jacobian of a normed affine map at every token, (N, D, C)."""
    assert part.gain_O is not None
    plain_ND = x_NC @ part.weight_OC.T + part.offset_O
    size = plain_ND.shape[-1]
    flatten = torch.eye(size, dtype=x_NC.dtype)
    if part.centred:
        flatten = flatten - 1 / size
    plain_ND = plain_ND @ flatten
    root_N1 = (plain_ND.square().mean(-1, keepdim=True) + part.eps).sqrt()
    unit_ND = plain_ND / root_N1
    inner_NDD = flatten - unit_ND[:, :, None] * unit_ND[:, None] / size
    return (part.gain_O[:, None] / root_N1[..., None] * inner_NDD) @ part.weight_OC
