"""The rate microscope: n from 1e9 to 1e13, which only sufficient statistics reach."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

EARLY = tuple(round(10 ** (9 + i / 3)) for i in range(7))  # 1e9 .. 1e11
LATE = tuple(round(10 ** (11 + i / 3)) for i in range(7))  # 1e11 .. 1e13

CELLS = (
    Cell("softmax", "gelu", claim=-0.25),
    Cell("softmax", "tanh", claim=-0.25),
    Cell("softmax", "relu", claim=-0.25),
    Cell("softmax", "linear", claim=0),
    Cell("sigmoid", "gelu", regime="sparse", claim=-0.25),
    Cell("sigmoid", "tanh", regime="sparse", claim=-0.25),
    Cell("sigmoid", "gelu", regime="dense", claim=-0.5),
    Cell("sigmoid", "tanh", regime="dense", claim=-0.5),
)

STUDY = rate_study(
    "microscope",
    "The rate microscope, n = 1e9 to 1e13",
    "The rates of P2's table are asymptotic. Where slopes still bend at n = 1e8, these are the "
    "sizes at which to look.",
    "arXiv 2405.13997, table of expert estimation rates",
    CELLS,
    windows=(EARLY, LATE),
)
