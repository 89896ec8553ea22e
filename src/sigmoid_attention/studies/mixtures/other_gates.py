"""Gates that neither paper treats: is what holds for the sigmoid a matter of its not competing?"""

from sigmoid_attention.studies.mixtures.cells import Cell, rate_study

COMPETING = ("softmax", "normalised_sigmoid", "sparsemax", "entmax15")
ALONE = ("sigmoid", "tanh", "hard_sigmoid", "relu")

# A normalised sigmoid has many minima that fit worse than the truth, so each gate gets five starts.
CELLS = tuple(
    Cell(gate, "gelu", k=3, claim=-0.25 if gate in COMPETING else -0.5, starts=5, jitter=0.5)
    for gate in (*ALONE, *COMPETING)
)

STUDY = rate_study(
    "other_gates",
    "Other gates, GELU experts",
    "P2 and P3 ascribe the better rate to experts that do not compete. Taken at its word that is a "
    "claim about every gate: n^-1/2 where each expert is weighed for itself (sigmoid, tanh, hard "
    "sigmoid, ReLU), n^-1/4 where weights share a sum (softmax, normalised sigmoid, sparsemax, "
    "entmax-1.5). The papers do not state it for gates other than sigmoid and softmax.",
    "extrapolated here from arXiv 2405.13997, theorem 3",
    CELLS,
)
