"""Mini-batch SGD for many mixtures whose scores and experts are functions of affine maps of x.

`stochastic.paper_mode` trains any family through its Jacobian. Here one matrix product gives the
scores and the arguments of all experts, and another one the gradient, which is faster by far in
tens of dimensions.

Shape letters: R runs, V variants of a run, N observations, M of a batch, d dimension, k experts,
P = k (2 d + 2) parameters.
"""

import torch
from torch import Tensor

from sigmoid_attention.mixtures import gates
from sigmoid_attention.mixtures.experts import RidgeFunction, expert
from sigmoid_attention.mixtures.model import Mixture


def packed_sgd(
    family: Mixture,
    inputs_RNd: Tensor,
    observations_RVN: Tensor,
    start_RP: Tensor,
    *,
    rate_V: Tensor,
    epochs: int,
    batch: int,
    seed: int = 0,
) -> Tensor:
    """The parameters (R, V, P) after some epochs of SGD on the mean squared error.

    Every run has inputs and a start of its own, which its variants share; a variant has
    observations and a learning rate of its own. An epoch visits the data in a new random order, the
    same one for all runs. The last batch of an epoch may be smaller. A variant that diverged ends
    with numbers that are not finite, and changes no other one. The computation has the dtype of the
    inputs. Source: the experiments of Nguyen et al. 2024.

    Raises:
        ValueError: a family with scores that are not linear, or experts other than phi(a'x + b).

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import Mixture
        >>> family, inputs = Mixture("sigmoid", "linear", k=2, d=3), torch.rand(4, 100, 3)
        >>> trained = packed_sgd(
        ...     family, inputs, torch.zeros(4, 1, 100), torch.ones(4, family.size),
        ...     rate_V=torch.tensor([0.1]), epochs=2, batch=16,
        ... )
        >>> trained.shape
        torch.Size([4, 1, 16])
    """
    ridge = expert(family.expert)
    plain = isinstance(ridge, RidgeFunction) and ridge.bias and not ridge.scale
    if family.score != "linear" or family.temperature or not plain:
        raise ValueError(
            "family must have linear scores without a temperature and experts phi(a'x + b), "
            f"got {family}"
        )
    assert isinstance(ridge, RidgeFunction)
    gate = gates.gate(family.gate)
    variants, k = len(rate_V), family.k
    dtype = inputs_RNd.dtype
    # One array, so that a batch is gathered once.
    rows = torch.cat(
        (inputs_RNd, torch.ones_like(inputs_RNd[..., :1]), observations_RVN.mT.to(dtype)), -1
    )
    affine = family.d + 1
    # A column for each variant, score or argument, and expert.
    weights = start_RP[:, None].expand(-1, variants, -1).to(dtype)
    weights = weights.unflatten(-1, (k, 2, affine)).permute(0, 4, 1, 3, 2).flatten(2).clone()
    rng = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order_N = torch.randperm(rows.shape[1], generator=rng)
        for place_M in order_N.split(batch):
            x, y = rows.index_select(1, place_M).tensor_split([affine], -1)
            score, argument = (x @ weights).unflatten(-1, (variants, 2, k)).unbind(-2)
            share = gate.weights(score)
            value, slope = ridge.activation(argument)
            error = (share * value).sum(-1) - y
            step = (error * (2 / len(place_M) * rate_V.to(dtype)))[..., None]
            by_score, by_argument = gate.pull(score, share, value) * step, share * slope * step
            columns = torch.stack((by_score, by_argument), -2).flatten(2)
            weights.baddbmm_(x.mT, columns, alpha=-1)
    packed = weights.unflatten(-1, (variants, 2, k))
    return packed.permute(0, 2, 4, 3, 1).flatten(2)
