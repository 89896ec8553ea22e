"""P3's two figures: quadratic scores, sigmoid beside softmax, and sparse beside dense truths."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

SCORE = "fully_quadratic"

# Slopes printed in figure 1; of figure 2 they are not known to us, so that the sparse truths have
# those of the theorems.
FIRST = {
    ("sigmoid", "relu"): -0.51, ("softmax", "relu"): -0.24,
    ("sigmoid", "linear"): -0.46, ("softmax", "linear"): -0.07,
}  # fmt: skip
SECOND = {("sigmoid", "relu"): -0.25, ("sigmoid", "linear"): 0.0}

CELLS = (
    *(
        Cell(gate, expert, SCORE, k=3, claim=claim, quantity="D1")
        for (gate, expert), claim in FIRST.items()
    ),
    *(
        Cell(gate, expert, SCORE, "sparse", k=3, claim=claim, quantity="D1")
        for (gate, expert), claim in SECOND.items()
    ),
)

STUDY = rate_study(
    "p3_figures",
    "P3's figures",
    "With quadratic scores the Voronoi loss falls as n^-0.51 under the sigmoid and as n^-0.24 "
    "under the softmax for ReLU experts, as n^-0.46 and n^-0.07 for linear ones; under the sigmoid "
    "a dense truth is learnt faster than a sparse one.",
    "arXiv 2502.00281, figures 1 and 2; each gate on data of its own truth",
    CELLS,
)
