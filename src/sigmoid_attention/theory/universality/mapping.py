"""Step 3: feed-forward layers that turn the code of every context into its value.

As in Yun et al. 2020 there is a layer for each context. Contexts are taken from the largest code
down: one that is done has left the zone of codes, so that "above a threshold" selects the tokens of
a single context, and a ramp of two hidden units does. (Where four hidden units of a layer do two
contexts, a token far above a ramp gets h j - (h - 1) j for its jump j, with h so large that float64
loses the jump's digits.)

Shape letters: S sequences, N tokens, D channels, C contexts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sigmoid_attention.theory.universality.layers import (
    Network,
    ReLUFeedForward,
    ReLUUnit,
    feed_forward_layer,
)
from sigmoid_attention.theory.universality.plan import Plan


@dataclass(frozen=True)
class Contexts:
    """Every context of a grid, from the largest code down.

    Attributes:
        states_CD: what a token holds there after the contextual mapping.
        outputs_CD: the function's value for it.
        codes_C: u . state.
        duplicates: tokens of different contexts that got the same code; 0 if the mapping is one.
    """

    states_CD: Tensor
    outputs_CD: Tensor
    codes_C: Tensor
    duplicates: int

    @property
    def smallest_gap(self) -> float:
        """Of the codes of two contexts; infinite where there is one context."""
        gaps = -self.codes_C.diff()
        return float(gaps.amin()) if len(gaps) else float("inf")


def contexts(mapper: Network, plan: Plan, outputs_SND: Tensor) -> Contexts:
    """What ``mapper`` (rounding, counting, chaining) makes of every sequence of the grid.

    ``outputs_SND`` are the function's values at `Grid.all_sequences`.
    """
    cells_SND = plan.grid.all_sequences()
    with torch.no_grad():
        states_SND = mapper(plan.grid.centres(cells_SND))
    # Letters ascend in a sequence, so a token that equals the one before is of the same context.
    letters_SN = cells_SND @ plan.grid.weights_D
    first_SN = torch.ones_like(letters_SN, dtype=torch.bool)
    first_SN[:, 1:] = letters_SN.diff(dim=1) != 0
    states_CD, outputs_CD = states_SND[first_SN], outputs_SND[first_SN]
    codes_C = states_CD @ plan.grid.weights_D
    order = codes_C.argsort(descending=True)
    duplicates = len(codes_C) - len(codes_C.unique())
    return Contexts(states_CD[order], outputs_CD[order], codes_C[order], duplicates)


def value_mapping(contexts_of_grid: Contexts, plan: Plan) -> Iterator[ReLUFeedForward]:
    """One layer a context, which adds output - state to its tokens.

    The ramp rises from 0 at code - gap / 2 to 1 within a quarter of the grain: exact for exact
    codes, and right for codes that are off by up to gap / 4.
    """
    weights_D = plan.grid.weights_D
    steepness = 4 / plan.grain
    jumps_CD = contexts_of_grid.outputs_CD - contexts_of_grid.states_CD
    for code, jump_D in zip(contexts_of_grid.codes_C.tolist(), jumps_CD, strict=True):
        shift = -steepness * (code - plan.gap / 2)
        yield feed_forward_layer(
            plan.grid.d,
            [
                ReLUUnit(steepness * weights_D, shift, jump_D),
                ReLUUnit(steepness * weights_D, shift - 1, -jump_D),
            ],
        )
