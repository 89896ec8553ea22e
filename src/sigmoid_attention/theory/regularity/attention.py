"""Certified bounds on the Jacobian of an attention layer over a set of inputs.

Shape letters: N tokens, H heads.
"""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.theory.regularity.domain import Domain, spectral_norm
from sigmoid_attention.theory.regularity.heads import HeadMaps, Heads


@dataclass(frozen=True)
class Bound:
    """Certified upper bounds of a map on a set: its Jacobian norm and the norm of its output.

    ``jacobian`` bounds the spectral norm of the Jacobian from all input tokens to all output
    tokens. ``reach`` bounds the norm of each output token. ``jacobian`` is the sum of
    ``through_values``, ``through_queries`` and ``through_keys``.
    """

    jacobian: float
    reach: float
    through_values: float
    through_queries: float
    through_keys: float


def attention_bound(
    layer: Attention, domain: Domain, tokens: int, *, gain_C: Tensor | None = None
) -> Bound:
    r"""A bound from the layer's own weights, bias and the attained range of its activation.

    Let :math:`u_{ij} = s\,q_i \cdot k_j + b_{ij}` be the logits, :math:`w_j = W_o v_j` the
    projected values, and :math:`o_i = \sum_j \sigma(u_{ij}) w_j` the output. A change of the inputs
    changes the output by

    .. math::
        \sum_j \sigma(u_{ij})\,dw_j + s \sum_j \sigma'(u_{ij})\,w_j\,(k_j \cdot dq_i)
        + s \sum_j \sigma'(u_{ij})\,w_j\,(q_i \cdot dk_j).

    On the set, :math:`|s\,q_i \cdot k_j| \le S`, so that each :math:`u_{ij}` lies within S of
    :math:`b_{ij}`. Let :math:`\bar\sigma_{ij}` and :math:`\bar\sigma'_{ij}` be the largest values
    there. The first sum is a Kronecker product, of norm
    :math:`\|\sigma\| \|W_o W_v\| \le \|\bar\sigma\| \|W_o W_v\|`, since the norm of a matrix with
    entries of one sign grows with each of them. The second sum is block diagonal, of norm at most
    :math:`s \max_i \sum_j \bar\sigma'_{ij} \sup|w| \sup|k|\,L_q`. The third sum has blocks of norm
    at most :math:`s\,\bar\sigma'_{ij} \sup|w| \sup|q|\,L_k`; the norm of the matrix of these bounds
    it. The bounds of heads are added. :math:`L_q` and :math:`L_k` are the Lipschitz constants of
    query and key, QK-norm included.

    A softmax has weights p that sum to one, at most
    :math:`\bar p_{ij} = \min(1, e^{2S + b_{ij}} / \sum_l e^{b_{il}})`. There
    :math:`\|p\| \le c := (\max_j \sum_i \bar p_{ij})^{1/2}`, by Riesz and Thorin. The second and
    third sums are covariances under p, of :math:`w_j` with :math:`k_j \cdot dq_i` and with
    :math:`q_i \cdot dk_j`; by Cauchy and Schwarz they are at most :math:`s\,r \sup|k|\,L_q` and
    :math:`s\,r \sup|q|\,L_k\,c`, where r is the radius of :math:`w_j` about its centre.

    The bound is derived here. With 1 for :math:`\bar\sigma` and 1/4 for :math:`\bar\sigma'` the
    same argument gives `mean_norm_bound`, a bound of the kind of Ramapuram et al. 2024, theorem
    3.2. Rounding in float64 is not bounded.

    Args:
        layer: the layer in evaluation mode; dropout is ignored.
        domain: the set that every token lies in.
        tokens: N, the length of the input.
        gain_C: a LayerScale that follows the layer.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a bias that depends on logits (RowLSE), or fewer than one token.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn import Attention
        >>> from sigmoid_attention.theory.regularity import Ball
        >>> layer = Attention(8, num_heads=2, max_seq_len=16)
        >>> small, large = (attention_bound(layer, Ball(r), tokens=16) for r in (1.0, 4.0))
        >>> small.jacobian < large.jacobian
        True
    """
    arguments.instance("domain", domain, Domain, "a Domain, such as a Ball or a Box")
    heads = Heads.of(layer, tokens, gain_C)
    rule = _sigmoid_head if heads.activation == "sigmoid" else _softmax_head
    parts = [rule(heads, h, domain) for h in range(len(heads.heads))]
    reach, *through = (sum(column) for column in zip(*parts, strict=True))
    return Bound(sum(through), reach + float(heads.offset_C.norm()), *through)


def _sigmoid_head(heads: Heads, h: int, domain: Domain) -> tuple[float, float, float, float]:
    head, added = heads.heads[h], heads.heads[h].value.reach(domain)
    weight_NN, slope_NN = largest_weights(heads, h, domain)
    queries, keys = _products(heads, head, domain)
    return (
        float(weight_NN.sum(-1).max()) * added,
        spectral_norm(weight_NN) * head.value.steepness(),
        float(slope_NN.sum(-1).max()) * added * queries,
        spectral_norm(slope_NN) * added * keys,
    )


def _softmax_head(heads: Heads, h: int, domain: Domain) -> tuple[float, float, float, float]:
    head = heads.heads[h]
    spread = 2 * heads.logits(head, domain)
    bias_NN = heads.bias_HNN[h].masked_fill(~heads.visible_NN, -torch.inf)
    share_NN = (bias_NN - bias_NN.logsumexp(-1, keepdim=True) + spread).exp().clamp(max=1)
    column = float(share_NN.sum(0).max()) ** 0.5
    # About the centre: a constant part of all w_j does not change a covariance.
    radius = spectral_norm(head.value.weight_OC) * domain.upper
    queries, keys = _products(heads, head, domain)
    return (
        head.value.reach(domain),
        column * head.value.steepness(),
        radius * queries,
        radius * keys * column,
    )


def _products(heads: Heads, head: HeadMaps, domain: Domain) -> tuple[float, float]:
    """Bounds on the slope of a logit in the token of its query and in the token of its key.

    A softcap only makes the slope smaller.
    """
    through_query = heads.scale * head.key.reach(domain) * head.query.steepness()
    through_key = heads.scale * head.query.reach(domain) * head.key.steepness()
    return through_query, through_key


def largest_weights(heads: Heads, h: int, domain: Domain) -> tuple[Tensor, Tensor]:
    """The largest sigma(u) and sigma'(u) that each pair can attain on the domain, (N, N).

    sigma' is largest at zero and falls on both sides. Its maximum is 1/4 where the range holds
    zero, and otherwise the value at the end of the range that is nearer to zero.
    """
    reach = heads.logits(heads.heads[h], domain)
    bias_NN = heads.bias_HNN[h]
    nearest_NN = bias_NN.abs().sub(reach).clamp(min=0)
    weight_NN = torch.sigmoid(bias_NN + reach)
    slope_NN = torch.sigmoid(nearest_NN) * torch.sigmoid(-nearest_NN)
    hidden_NN = ~heads.visible_NN
    return weight_NN.masked_fill(hidden_NN, 0.0), slope_NN.masked_fill(hidden_NN, 0.0)


def mean_norm_bound(layer: Attention, mean_square_norm: float, tokens: int) -> float:
    r"""A bound that needs only the tokens' mean squared norm, as in Ramapuram et al. 2024.

    .. math::
        \|J\|_2 \le n \sum_h \|W_o W_v\|_2 \Big( \|\sigma\|_\infty
        + 2 \|\sigma'\|_\infty\, s\, \|W_q^\top W_k\|_2\, \frac1n \sum_i |x_i|^2 \Big)

    with 1 and 1/4 for the two suprema, and with the bounds of heads added. Theorem 3.2 of Ramapuram
    et al. 2024 is a bound of this kind; the constants are derived here. It needs no bound on a
    single token, where a bound for softmax does. It is a bound for all layers only where the norms
    of their weight matrices are bounded.

    Args:
        mean_square_norm: :math:`\frac1n \sum_i |x_i|^2`, on a ball of radius R at most R squared.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a layer with QK-norm, with linear biases or with a softmax; the bound does
            not cover these.

    Example:
        >>> from sigmoid_attention.nn import Attention
        >>> mean_norm_bound(Attention(8, num_heads=2, max_seq_len=16), 1.0, tokens=16) > 0
        True
    """
    arguments.instance("mean_square_norm", mean_square_norm, Real, "a number")
    heads = Heads.of(layer, tokens)
    if heads.activation != "sigmoid":
        raise ValueError("layer: the mean-norm bound is about a sigmoid, got a softmax layer")
    total = 0.0
    for head in heads.heads:
        for name, part in (("query", head.query), ("key", head.key), ("value", head.value)):
            if part.gain_O is not None or part.offset_O.any():
                raise ValueError(
                    f"layer: the mean-norm bound holds for linear maps only, and the {name} has "
                    f"{'a norm' if part.gain_O is not None else 'an additive term'}"
                )
        product = spectral_norm(head.query.weight_OC.T @ head.key.weight_OC)
        inner = 1 + 2 * 0.25 * heads.scale * product * mean_square_norm
        total += spectral_norm(head.value.weight_OC) * inner
    return tokens * total
