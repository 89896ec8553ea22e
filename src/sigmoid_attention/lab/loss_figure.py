"""The loss curves of one training run: on training text and on held-out text."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import COLOURS, panels, styled
from sigmoid_attention.training.loss_log import LossRow

# More would be more bytes and no more to see.
POINTS = 600


def loss_figure(rows: Sequence[LossRow]) -> Figure:
    """Bits a byte by step; of a long run the means of neighbouring steps."""
    figure, (ax,) = panels(1)
    together = -(-len(rows) // POINTS)
    groups = [rows[start : start + together] for start in range(0, len(rows), together)]
    with styled():
        figure.set_size_inches(5.6, 3.4)
        ax.plot(
            [group[-1].step for group in groups],
            [sum(row.training_bits_per_byte for row in group) / len(group) for group in groups],
            color=COLOURS["sparsemax"],
            linewidth=0.8,
            label="training",
        )
        heldout = {row.step: row.heldout_bits_per_byte for row in rows}
        tested = {step: bits for step, bits in heldout.items() if bits is not None}
        ax.plot(
            list(tested),
            list(tested.values()),
            "o-",
            color=COLOURS["sigmoid"],
            label="held out",
        )
        ax.set_xlabel("step")
        ax.set_ylabel("bits a byte")
        ax.legend()
    return figure
