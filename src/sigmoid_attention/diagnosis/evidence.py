"""Measures the attention weights of one module.

A key counts as visible where its weight is not zero: a hidden key has a weight of exactly zero.

Shape letters: B sequences, H heads, Q queries, K keys, P parts of the rows.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

PARTS = 8
SATURATED = 0.99
# Rows that are kept for the shift of the bias.
KEPT_ROWS = 32


@dataclass(frozen=True)
class Evidence:
    """What the weights of one module are like, averaged over batches.

    Attributes:
        name: of the module.
        mass_H: the mean sum of a row's weights. A softmax has 1.
        largest_H: the largest weight.
        saturated_H: the share of visible weights above 0.99.
        common_H: the mean weight of the key with the largest mean, among the keys that half of the
            rows see.
        common_key_H: the place of this key.
        usual_H: the mean of all visible weights.
        likeness_HH: the correlation of two heads' weights over the visible pairs.
        mass_PH: the mean mass in each eighth of the rows.
        shift: the number to add to the bias, for a mean mass of 1 in this module.
        queries: rows of a sequence.
    """

    name: str
    mass_H: Tensor
    largest_H: Tensor
    saturated_H: Tensor
    common_H: Tensor
    common_key_H: Tensor
    usual_H: Tensor
    likeness_HH: Tensor
    mass_PH: Tensor
    shift: float
    queries: int

    @classmethod
    def of(cls, name: str, batches: list[Tensor]) -> Self:
        """From the weights (B, H, Q, K) of some batches of equal length."""
        weights_BHQK = torch.cat([batch.float() for batch in batches])
        visible_BHQK = weights_BHQK > 0
        mass_BHQ = weights_BHQK.sum(-1)
        queries = mass_BHQ.shape[-1]
        shown_BHK = visible_BHQK.sum(2)
        mean_HK = weights_BHQK.sum(2).div(shown_BHK.clamp(min=1)).mean(0)
        seen_by_half_HK = (shown_BHK >= queries / 2).all(0)
        common_H, common_key_H = mean_HK.where(seen_by_half_HK, torch.zeros(())).max(-1)
        parts = mass_BHQ.mean(0).tensor_split(min(PARTS, queries), dim=-1)
        return cls(
            name,
            mass_H=mass_BHQ.mean((0, 2)),
            largest_H=weights_BHQK.amax((0, 2, 3)),
            saturated_H=(weights_BHQK > SATURATED).sum((0, 2, 3)) / visible_BHQK.sum((0, 2, 3)),
            common_H=common_H,
            common_key_H=common_key_H,
            usual_H=weights_BHQK.sum((0, 2, 3)) / visible_BHQK.sum((0, 2, 3)),
            likeness_HH=_likeness(weights_BHQK, visible_BHQK),
            mass_PH=torch.stack([part.mean(-1) for part in parts]),
            shift=shift_to_one(weights_BHQK),
            queries=queries,
        )


def shift_to_one(weights_BHQK: Tensor) -> float:
    r"""The number c with \sum_j sigmoid(logit(w_ij) + c) = 1 in the mean over rows.

    Example:
        >>> round(shift_to_one(torch.full((1, 1, 1, 10), 0.5)), 3)  # ten weights of 1/10
        -2.197
    """
    step = -(-weights_BHQK.shape[2] // KEPT_ROWS)
    logits = weights_BHQK[:, :, ::step].double().logit(eps=1e-12)
    logits = logits.masked_fill(weights_BHQK[:, :, ::step] == 0, -torch.inf)
    low, high = -60.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        if (logits + middle).sigmoid().sum(-1).mean() > 1:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _likeness(weights_BHQK: Tensor, visible_BHQK: Tensor) -> Tensor:
    count_BH11 = visible_BHQK.sum((2, 3), keepdim=True).clamp(min=1)
    mean_BH11 = weights_BHQK.sum((2, 3), keepdim=True) / count_BH11
    centred_BHS = (weights_BHQK - mean_BH11).where(visible_BHQK, torch.zeros(())).flatten(2)
    unit_BHS = torch.nn.functional.normalize(centred_BHS, dim=-1)
    return (unit_BHS @ unit_BHS.mT).mean(0)
