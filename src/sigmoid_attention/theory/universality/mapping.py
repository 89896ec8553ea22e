"""Step 3: feed-forward layers that turn the code of every context into its value.

As in Yun et al. 2020 there is a layer for each context. Contexts are processed from the largest
code down. The tokens of a processed context have left the zone of codes. A threshold therefore
selects the tokens of a single context, and a ramp of two hidden units is enough. (With two contexts
a layer, in four hidden units, a token far above a ramp would get h j - (h - 1) j for its jump j,
with h so large that float64 loses the digits of the jump.)

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
        states_CD: a token of the context after the contextual mapping.
        outputs_CD: the function's value for it.
        codes_C: u . state.
        duplicates: tokens of different contexts with the same code; 0 if codes are unique.
    """

    states_CD: Tensor
    outputs_CD: Tensor
    codes_C: Tensor
    duplicates: int

    @property
    def smallest_gap(self) -> float:
        """The least distance between the codes of two contexts; infinite for one context."""
        gaps = -self.codes_C.diff()
        return float(gaps.amin()) if len(gaps) else float("inf")


def contexts(mapper: Network, plan: Plan, outputs_SND: Tensor) -> Contexts:
    """The contexts of every sequence of the grid after ``mapper`` (rounding, counting, chaining).

    ``outputs_SND`` are the function's values at `Grid.all_sequences`.
    """
    cells_SND = plan.grid.all_sequences()
    with torch.no_grad():
        states_SND = mapper(plan.grid.centres(cells_SND))
    # Letters ascend in a sequence, so equal neighbours belong to the same context.
    letters_SN = cells_SND @ plan.grid.weights_D
    first_SN = torch.ones_like(letters_SN, dtype=torch.bool)
    first_SN[:, 1:] = letters_SN.diff(dim=1) != 0
    states_CD, outputs_CD = states_SND[first_SN], outputs_SND[first_SN]
    codes_C = states_CD @ plan.grid.weights_D
    order = codes_C.argsort(descending=True)
    duplicates = len(codes_C) - len(codes_C.unique())
    return Contexts(states_CD[order], outputs_CD[order], codes_C[order], duplicates)


def value_mapping(contexts_of_grid: Contexts, plan: Plan) -> Iterator[ReLUFeedForward]:
    """The layers of the value mapping, one a context: each adds output - state to its tokens.

    The ramp rises from 0 at code - gap / 2 to 1 within a quarter of the grain. It is exact for
    exact codes, and correct for codes with an error of up to gap / 4.
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
