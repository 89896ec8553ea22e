"""Step 1: feed-forward layers that round every token to its cell, and clip the output.

Ramapuram et al. 2024 and Yun et al. 2020 first replace f by a function that is constant on cells.
On a compact set a continuous f varies little within a small cell, so the L^p error is small. Their
feed-forward layers then round tokens to the corners of their cells by a function with a jump for
every cell. Ours are ReLU layers, whose jumps are ramps of width 2^-40 of a cell. Tokens on a ramp
get wrong values, and clipping bounds their error. The scaling layers come first and make corners
whole numbers, so later steps are exact.

Shape letters: D channels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sigmoid_attention.theory.universality.grid import Grid
from sigmoid_attention.theory.universality.layers import (
    ReLUFeedForward,
    ReLUUnit,
    feed_forward_layer,
)

RAMP = 2.0**-40


def scaling(grid: Grid) -> Iterator[ReLUFeedForward]:
    """The layers of scaling, one a channel: x <- (x - low) / side, and 0 below the box.

    x + (c - 1) relu(x - low) + relu(low - x) - low = c relu(x - low),   c = 1 / side
    """
    for channel_D in _channels(grid.d):
        yield feed_forward_layer(
            grid.d,
            [
                ReLUUnit(channel_D, -grid.low, (1 / grid.side - 1) * channel_D),
                ReLUUnit(-channel_D, grid.low, channel_D),
            ],
            -grid.low * channel_D,
        )


def rounding(grid: Grid) -> Iterator[ReLUFeedForward]:
    """One layer a channel and cell c, from the last cell down: x <- c for x in [c, c + 1 - w).

    With t = x - c and w = 2^-40 it adds the function of t that is 0 below 0, -t up to 1 - w, and
    rises to 0 again at 1:

        -relu(t) + relu(t - (1 - w)) / w - (1 / w - 1) relu(t - 1)

    For whole t >= 1, the positions of rounded tokens of later cells, it is exactly 0 in float64.
    x - (x - c) is exactly c. The last cell has no upper end, so the box is closed.
    """
    for channel_D in _channels(grid.d):
        for cell in reversed(range(grid.cells)):
            units = [
                ReLUUnit(channel_D, -cell, -channel_D),
                ReLUUnit(channel_D, -cell - 1 + RAMP, channel_D / RAMP),
                ReLUUnit(channel_D, -cell - 1, (1 - 1 / RAMP) * channel_D),
            ]
            yield feed_forward_layer(grid.d, units[:1] if cell == grid.cells - 1 else units)


def clipping(d: int, low: float, high: float) -> Iterator[ReLUFeedForward]:
    """One layer a channel: x <- min(max(x, low), high), by x - relu(x - high) + relu(low - x).

    Correct outputs already lie in the range. Errors from tokens on ramps, or from sigmoids that are
    not steep enough, are then at most high - low.
    """
    for channel_D in _channels(d):
        yield feed_forward_layer(
            d, [ReLUUnit(channel_D, -high, -channel_D), ReLUUnit(-channel_D, low, channel_D)]
        )


def lost(grid: Grid, low: float, high: float, p: float) -> float:
    """An upper bound on the contribution of tokens on ramps to the L^p error over the box.

    Sequences with such a token are a share n d 2^-40 of the box. Their error is at most high - low
    in each of n d entries.
    """
    entries = grid.n * grid.d
    return (entries * RAMP * entries * volume(grid)) ** (1 / p) * (high - low)


def volume(grid: Grid) -> float:
    """(high - low)^(n d), the measure of the box."""
    return (grid.high - grid.low) ** (grid.n * grid.d)


def _channels(d: int) -> Iterator[Tensor]:
    yield from torch.eye(d, dtype=torch.float64)
