"""P2's figure: Voronoi loss against n for ReLU and for linear experts, sigmoid beside softmax."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

# The figure's own slopes are not known to us; these are what the theorems give for the loss with
# power 1 in every cell, which is the only one whose slope the theorems tell apart.
CLAIMS = {"relu": (-0.5, -0.25), "linear": (-0.5, 0.0)}

CELLS = tuple(
    Cell(gate, expert, k=3, claim=claim, quantity="D1")
    for expert, claims in CLAIMS.items()
    for gate, claim in zip(("sigmoid", "softmax"), claims, strict=True)
)

STUDY = rate_study(
    "p2_figure",
    "P2's figure",
    "The Voronoi loss falls faster under the sigmoid gate than under the softmax gate, with ReLU "
    "and with linear experts.",
    "arXiv 2405.13997, figure 1; each gate on data of its own truth",
    CELLS,
)
