"""How many experts too many: 1, 2 and 4."""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

CELLS = tuple(
    Cell(gate, "gelu", regime=regime, extra=extra, claim=claim)
    for gate, regime, claim in (
        ("sigmoid", "sparse", -0.25), ("sigmoid", "dense", -0.5), ("softmax", "dense", -0.25),
    )
    for extra in (1, 2, 4)
)  # fmt: skip

STUDY = rate_study(
    "extra_experts",
    "One, two and four experts too many",
    "For strongly identifiable experts the rates do not depend on how many more experts are fitted "
    "than there are.",
    "arXiv 2405.13997, theorems 1 and 3",
    CELLS,
)
