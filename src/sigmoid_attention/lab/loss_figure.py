"""The loss curves of one training run: on training text and on held-out text."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import COLOURS, panels, styled
from sigmoid_attention.training.loss_log import LossRow

# More points could not be distinguished.
POINTS = 600


def loss_figure(rows: Sequence[LossRow]) -> Figure:
    """Bits per byte by step; in a long run, means over neighbouring steps."""
    figure, (ax,) = panels(1)
    group_size = -(-len(rows) // POINTS)
    groups = [rows[i : i + group_size] for i in range(0, len(rows), group_size)]
    with styled():
        figure.set_size_inches(5.6, 3.4)
        ax.plot(
            [group[-1].step for group in groups],
            [sum(row.training_bits_per_byte for row in group) / len(group) for group in groups],
            color=COLOURS["sparsemax"],
            linewidth=0.8,
            label="training",
        )
        all_steps = {row.step: row.heldout_bits_per_byte for row in rows}
        heldout = {step: bits for step, bits in all_steps.items() if bits is not None}
        ax.plot(
            list(heldout),
            list(heldout.values()),
            "o-",
            color=COLOURS["sigmoid"],
            label="held out",
        )
        ax.set_xlabel("step")
        ax.set_ylabel("bits per byte")
        ax.legend()
    return figure
