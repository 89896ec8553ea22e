"""Rate studies over tables of cells, with the exponent that a paper claims for each cell."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study
from sigmoid_attention.studies.mixtures.truths import HELD_OUT, MORE

# Nguyen et al. 2024 ---------------------------------------------------------------------------

# Exponents of n in the paper's table, up to logarithms; 0 is 1 / log n.
NGUYEN2024_EXPONENTS = {
    ("sigmoid", "sparse"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0, "constant": 0},
    ("sigmoid", "dense"): {
        "relu": -0.5, "gelu": -0.5, "linear": -0.5, "poly2": -0.5, "constant": 0,
    },
    ("softmax", "dense"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0, "constant": 0},
}  # fmt: skip


def _truths(expert: str, exponent: float) -> tuple[int, ...]:
    """More truths where controls can pass and the slope decides: identifiable experts at n^-1/4."""
    return MORE if expert in ("gelu", "tanh") and exponent == -0.25 else HELD_OUT


NGUYEN2024_TABLE = rate_study(
    "nguyen2024_table",
    "Expert rates of Nguyen et al. 2024",
    "An over-specified expert is estimated at n^-1/4 under a softmax gate and under a sigmoid gate "
    "in regime 1 (sparse) where experts are strongly identifiable, slower than any power of n "
    "where they are polynomial or do not depend on the input; under a sigmoid gate in regime 2 "
    "(dense) at n^-1/2, but for experts that do not depend on the input.",
    "Nguyen et al. 2024, table of expert estimation rates and theorems 2 to 5",
    [
        Cell(gate, expert, regime=regime, claim=exponent, truths=_truths(expert, exponent))
        for (gate, regime), exponents in NGUYEN2024_EXPONENTS.items()
        for expert, exponent in exponents.items()
    ],
)

# Not the slopes that the paper's figure prints, which `paper_protocol` has in the figure's setting.
# These are the exponents that the theorems give for the loss with power 1 in every cell, the only
# loss whose slopes differ by theorem.
NGUYEN2024_D1_EXPONENTS = {"relu": (-0.5, -0.25), "linear": (-0.5, 0.0)}

NGUYEN2024_FIGURE = rate_study(
    "nguyen2024_figure",
    "Least squares in place of figure 1 of Nguyen et al. 2024",
    "The Voronoi loss falls faster under the sigmoid gate than under the softmax gate, with ReLU "
    "and with linear experts. This is another experiment than the paper's: least squares, two "
    "dimensions, three true experts, and each gate on data of its own truth, where the paper has "
    "SGD in 32 dimensions and a softmax truth for both gates. "
    "[Its own setting](#paper_protocol) is a study of its own.",
    "after Nguyen et al. 2024, figure 1",
    [
        Cell(gate, expert, k=3, claim=exponent, quantity="D1")
        for expert, exponents in NGUYEN2024_D1_EXPONENTS.items()
        for gate, exponent in zip(("sigmoid", "softmax"), exponents, strict=True)
    ],
)

EXTRA_EXPERTS = rate_study(
    "extra_experts",
    "One, two and four experts too many",
    "For strongly identifiable experts the rates do not depend on how many more experts are fitted "
    "than there are.",
    "Nguyen et al. 2024, theorems 2 and 5",
    [
        Cell(
            gate, "gelu", regime=regime, extra=extra, claim=exponent,
            truths=_truths("gelu", exponent) if extra == 1 else HELD_OUT,
        )
        for gate, regime, exponent in (
            ("sigmoid", "sparse", -0.25), ("sigmoid", "dense", -0.5), ("softmax", "dense", -0.25),
        )
        for extra in (1, 2, 4)
    ],
)  # fmt: skip

MICROSCOPE = rate_study(
    "microscope",
    "The rate microscope, n = 1e9 to 1e13",
    "The rates in the table of Nguyen et al. 2024 are asymptotic. Where slopes still bend at "
    "n = 1e8, larger n show them; only sufficient statistics reach such n.",
    "Nguyen et al. 2024, table of expert estimation rates",
    [
        Cell(gate, expert, regime=regime, claim=exponent, truths=_truths(expert, exponent))
        for gate, expert, regime, exponent in (
            ("softmax", "gelu", "dense", -0.25), ("softmax", "tanh", "dense", -0.25),
            ("softmax", "relu", "dense", -0.25), ("softmax", "linear", "dense", 0),
            ("sigmoid", "gelu", "sparse", -0.25), ("sigmoid", "tanh", "sparse", -0.25),
            ("sigmoid", "gelu", "dense", -0.5), ("sigmoid", "tanh", "dense", -0.5),
        )
    ],
    windows=(
        tuple(round(10 ** (9 + 2 * i / 3)) for i in range(4)),  # 1e9 .. 1e11
        tuple(round(10 ** (9 + 2 * i / 3)) for i in range(2, 7)),  # 2e10 .. 1e13
    ),
)  # fmt: skip

COMPETING_GATES = ("softmax", "normalised_sigmoid", "sparsemax", "entmax15")
INDEPENDENT_GATES = ("sigmoid", "tanh", "hard_sigmoid", "relu")

OTHER_GATES = rate_study(
    "other_gates",
    "Other gates, GELU experts",
    "Nguyen et al. 2024 and Yan et al. 2025 ascribe the better rate to experts that do not "
    "compete. Taken literally, that is a claim about every gate: n^-1/2 where each expert has a "
    "weight of its own (sigmoid, tanh, hard sigmoid, ReLU), n^-1/4 where the weights share a sum "
    "(softmax, normalised sigmoid, sparsemax, entmax-1.5). The papers state it for sigmoid and "
    "softmax only.",
    "extrapolated here from Nguyen et al. 2024, theorem 5",
    # A normalised sigmoid has many minima that fit worse than the truth, so fits have three starts.
    [
        Cell(gate, "gelu", k=3, claim=exponent, starts=3, jitter=0.5)
        for gates, exponent in ((INDEPENDENT_GATES, -0.5), (COMPETING_GATES, -0.25))
        for gate in gates
    ],
)

# Yan et al. 2025 ------------------------------------------------------------------------------

# Exponents of the paper's table, which gives sample sizes eps^-4 and eps^-2; 0 is exponential in
# 1 / eps.
YAN2025_EXPONENTS = {
    ("sigmoid", "sparse"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0},
    ("sigmoid", "dense"): {"relu": -0.5, "gelu": -0.5, "linear": -0.5, "poly2": -0.5},
    ("softmax", "dense"): {"relu": -0.25, "gelu": -0.25, "linear": 0, "poly2": 0},
}

YAN2025_TABLE = rate_study(
    "yan2025_table",
    "Expert rates of Yan et al. 2025, quadratic scores",
    "With quadratic scores, by which a row of attention is a mixture, an over-specified expert is "
    "estimated to an error eps from eps^-2 observations under a sigmoid gate and a dense truth, "
    "ReLU, GELU, linear and polynomial experts alike; under a softmax gate or a sparse truth from "
    "eps^-4 with ReLU and GELU, and from exponentially many with linear and polynomial experts.",
    "Yan et al. 2025, table of sample complexities and theorems 1 to 3",
    [
        Cell(gate, expert, score, regime, claim=exponent)
        # x'Ax + c, then x'Ax + b'x + c
        for score in ("partially_quadratic", "fully_quadratic")
        for (gate, regime), exponents in YAN2025_EXPONENTS.items()
        for expert, exponent in exponents.items()
    ],
)

# Slopes printed in figure 1. Those of figure 2 are not known to us: sparse truths have the
# exponents of the theorems.
YAN2025_FIGURES_EXPONENTS = {
    ("sigmoid", "relu", "dense"): -0.51, ("softmax", "relu", "dense"): -0.24,
    ("sigmoid", "linear", "dense"): -0.46, ("softmax", "linear", "dense"): -0.07,
    ("sigmoid", "relu", "sparse"): -0.25, ("sigmoid", "linear", "sparse"): 0.0,
}  # fmt: skip

YAN2025_FIGURES = rate_study(
    "yan2025_figures",
    "Least squares in place of figures 1 and 2 of Yan et al. 2025",
    "With quadratic scores the Voronoi loss falls as n^-0.51 under the sigmoid and as n^-0.24 "
    "under the softmax for ReLU experts, as n^-0.46 and n^-0.07 for linear ones; under the sigmoid "
    "a dense truth is learnt faster than a sparse one. This is another experiment than the "
    "paper's, whose setting is not known to us: least squares, two dimensions, three true experts, "
    "each gate on data of its own truth.",
    "after Yan et al. 2025, figures 1 and 2",
    [
        Cell(gate, expert, "fully_quadratic", regime, k=3, claim=exponent, quantity="D1")
        for (gate, expert, regime), exponent in YAN2025_FIGURES_EXPONENTS.items()
    ],
)

STUDIES = {
    study.name: study
    for study in (
        NGUYEN2024_TABLE,
        NGUYEN2024_FIGURE,
        YAN2025_TABLE,
        YAN2025_FIGURES,
        OTHER_GATES,
        EXTRA_EXPERTS,
        MICROSCOPE,
    )
}
