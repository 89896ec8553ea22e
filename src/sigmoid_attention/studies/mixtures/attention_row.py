"""Study of rows of sigmoid attention as mixtures of experts, and of heads as a hierarchy of them.

Shape letters: N tokens, M their width, D head dim, H heads, E channels, P parameters.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.attention import CentredKeys
from sigmoid_attention.lab.figure import panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task
from sigmoid_attention.mixtures.attention_row import AttentionHead, heads_as_hierarchy
from sigmoid_attention.mixtures.rates.verdict import NOT_REPRODUCED, REPRODUCED

TOKENS, WIDTH, HEAD_DIM, CHANNELS = 7, 5, 3, 2
# The slope of ALiBi of the first head; each further head has half of it.
SLOPE = 0.5
WINDOW = 2
FIRST_SEED = 100
# A relative error below this is rounding in float64.
ROUNDING = 1e-12
# The relative error above which the control, a mixture without intercepts, counts as another.
ANOTHER = 1e-3


@dataclass(frozen=True)
class DrawnHeads:
    """Heads with normal weights of variance 1 / fan_in, and the options of the operator.

    Args:
        window: the number of earlier tokens that a token sees; -1 for all.
        layers: the number of layers, each with its own tokens.
    """

    heads: int = 1
    causal: bool = False
    window: int = -1
    alibi: bool = False
    centring: float = 0.0
    layers: int = 8


CELLS = {
    "one head": DrawnHeads(),
    "causal": DrawnHeads(causal=True),
    "window": DrawnHeads(causal=True, window=WINDOW),
    "ALiBi": DrawnHeads(causal=True, alibi=True),
    "centred keys": DrawnHeads(centring=1.0),
    "causal centred keys": DrawnHeads(causal=True, centring=1.0),
    "three heads": DrawnHeads(heads=3),
    "three heads, all options": DrawnHeads(3, True, WINDOW, True, 1.0),
}

RULE = f"""For each of 8 drawn layers and each row of {TOKENS} tokens, the mixture is computed from
the weights, and its output is compared with that of the operator's definition. Reproduced: the
largest error, relative to the largest output of the layer, is below {ROUNDING:g}, and in each
layer the same mixture without its intercepts is more than {ANOTHER:g} away in some row (control).
The identity is exact, so no interval decides it."""


def tasks() -> list[Task]:
    return [Task(cell, "identity", setting, measure) for cell, setting in CELLS.items()]


def measure(setting: DrawnHeads) -> Iterator[Row]:
    """The largest error of each layer, and that of its control."""
    for replicate in range(setting.layers):
        rng = torch.Generator().manual_seed(FIRST_SEED + replicate)
        tokens_NM = torch.randn(TOKENS, WIDTH, generator=rng, dtype=torch.float64)
        weights_H = [
            [
                torch.randn(WIDTH, size, generator=rng, dtype=torch.float64) / WIDTH**0.5
                for size in (HEAD_DIM, HEAD_DIM, CHANNELS)
            ]
            for _ in range(setting.heads)
        ]
        expected_NE = attended(setting, weights_H, tokens_NM)
        for quantity, with_intercepts in (("error", True), ("control", False)):
            answers_NE = as_mixtures(setting, weights_H, tokens_NM, with_intercepts)
            error = (answers_NE - expected_NE).abs().max() / expected_NE.abs().max()
            yield Row(quantity, float(error), TOKENS, replicate)


def attended(setting: DrawnHeads, weights_H: list[list[Tensor]], tokens_NM: Tensor) -> Tensor:
    """The sum of the heads by the operator's definition, (N, E)."""
    query, key, value = (
        torch.stack([tokens_NM @ matrix for matrix in matrices])[None]
        for matrices in zip(*weights_H, strict=True)
    )
    bias = -math.log(TOKENS)
    return sigmoid_attention(
        query, key, value,
        bias=CentredKeys(bias, setting.centring) if setting.centring else bias,
        is_causal=setting.causal,
        window_size=(setting.window, -1),
        alibi_slopes=torch.tensor(_slopes(setting)).double() if setting.alibi else None,
        impl="reference",
    )[0].sum(0)  # fmt: skip


def as_mixtures(
    setting: DrawnHeads, weights_H: list[list[Tensor]], tokens_NM: Tensor, with_intercepts: bool
) -> Tensor:
    """Each row as a mixture over the tokens that it sees, (N, E); heads as a hierarchy."""
    rows = []
    for i in range(TOKENS):
        first = max(0, i - setting.window) if setting.window >= 0 else 0
        seen = list(range(first, i + 1 if setting.causal else TOKENS))
        distances_N = torch.tensor([abs(i - j) for j in seen], dtype=torch.float64)
        mixtures = []
        for (query_MD, key_MD, value_ME), slope in zip(weights_H, _slopes(setting), strict=True):
            bias_N = -math.log(TOKENS) - slope * distances_N
            bias_N = bias_N * with_intercepts
            head = AttentionHead(query_MD, key_MD, value_ME, bias_N, setting.centring)
            mixtures.append(head.as_mixture(len(seen), seen.index(i)))
        family, theta_EP = heads_as_hierarchy(mixtures) if len(mixtures) > 1 else mixtures[0]
        rows.append(family.predict(theta_EP, tokens_NM[seen].flatten()[None])[:, 0])
    return torch.stack(rows)


def _slopes(setting: DrawnHeads) -> list[float]:
    return [SLOPE / 2**head if setting.alibi else 0.0 for head in range(setting.heads)]


def judge(results: Results) -> list[Finding]:
    findings = []
    for cell, setting in CELLS.items():
        measured = results[cell, "identity"][0]
        error, control = measured.values("error").max(), measured.values("control").min()
        findings.append(
            Finding(
                cell,
                "a hierarchy of mixtures" if setting.heads > 1 else "a mixture",
                f"largest error {error:.1e}",
                verdict(error, control),
                f"{setting.layers} layers, {TOKENS} rows each",
                f"without intercepts {control:.2g} or more",
            )
        )
    return findings


def verdict(error: float, control: float) -> str:
    """The rule, from the largest error and the smallest one of the control."""
    return REPRODUCED if error < ROUNDING and control > ANOTHER else NOT_REPRODUCED


def draw(results: Results) -> Figure:
    """Errors of all layers, beside those of the control."""
    figure, axes = panels(1)
    for quantity, marker in (("error", "o"), ("control", "x")):
        for place, cell in enumerate(CELLS):
            values = results[cell, "identity"][0].values(quantity)
            label = {"error": "mixture", "control": "without intercepts"}[quantity]
            axes[0].plot(
                values, [place] * len(values), marker, color="C0" if quantity == "error" else "C1",
                label=None if place else label,
            )  # fmt: skip
    axes[0].set(xscale="log", xlabel="relative error", yticks=range(len(CELLS)))
    axes[0].set_yticklabels(CELLS)
    axes[0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


STUDY = Study(
    "attention_row",
    "Rows of attention as mixtures, heads as a hierarchy",
    "A row of sigmoid attention is a mixture of linear experts with quadratic scores. That several "
    "heads are a hierarchy of such mixtures is named as future work; the form is ours.",
    "Yan et al. 2025, section 2; masks, ALiBi and centred keys are ours",
    RULE,
    tasks,
    judge,
    draw,
)
