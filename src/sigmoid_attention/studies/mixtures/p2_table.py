"""P2's table: rates of over-specified experts by gate, expert and regime, linear scores."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

# Exponents of the table in P2 (up to logarithms); 0 is 1 / log n.
CLAIMS = {
    ("sigmoid", "sparse"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0, "constant": 0},
    ("sigmoid", "dense"): {
        "relu": -0.5, "gelu": -0.5, "linear": -0.5, "poly2": -0.5, "constant": 0,
    },
    ("softmax", "dense"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0, "constant": 0},
}  # fmt: skip

CELLS = tuple(
    Cell(gate, expert, regime=regime, claim=claim)
    for (gate, regime), claims in CLAIMS.items()
    for expert, claim in claims.items()
)

STUDY = rate_study(
    "p2_table",
    "P2's table of expert rates",
    "An over-specified expert is estimated at n^-1/4 under a softmax gate and under a sigmoid gate "
    "in regime 1 (sparse) where experts are strongly identifiable, slower than any power of n "
    "where they are polynomial or do not depend on the input; under a sigmoid gate in regime 2 "
    "(dense) at n^-1/2, but for experts that do not depend on the input.",
    "arXiv 2405.13997, table of expert estimation rates and theorems 1 to 3",
    CELLS,
)
