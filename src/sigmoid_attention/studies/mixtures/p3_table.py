"""P3's table: the same with quadratic scores, partial (x'Ax + c) and full (x'Ax + b'x + c)."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

# Exponents of the table in P3 (sample sizes eps^-4 and eps^-2; 0 is exponential in 1 / eps).
CLAIMS = {
    ("sigmoid", "sparse"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0},
    ("sigmoid", "dense"): {"relu": -0.5, "gelu": -0.5, "linear": -0.5, "poly2": -0.5},
    ("softmax", "dense"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0},
}

CELLS = tuple(
    Cell(gate, expert, score, regime, claim=claim)
    for score in ("partially_quadratic", "fully_quadratic")
    for (gate, regime), claims in CLAIMS.items()
    for expert, claim in claims.items()
)

STUDY = rate_study(
    "p3_table",
    "P3's table of expert rates, quadratic scores",
    "With quadratic scores, by which a row of attention is a mixture, an over-specified expert is "
    "estimated to an error eps from eps^-2 observations under a sigmoid gate and a dense truth, "
    "ReLU, GELU, linear and polynomial experts alike; under a softmax gate or a sparse truth from "
    "eps^-4 with ReLU and GELU, and from exponentially many with linear and polynomial experts.",
    "arXiv 2502.00281, table of sample complexities and theorems 1 to 3",
    CELLS,
)
