r"""Measures how well a softmax's normaliser can be predicted without the row.

For every head, the log-sum-exp of a row is fitted by least squares to features of its token and
to two moments of its logits, on short sequences. It is predicted on longer held-out ones. The
residual, in nats, is the error of a sigmoid with this bias in the weights of a row. The moments
come from sums of keys: the mean logit s q · k̄, and the variance by channels, s² Σ_c q_c² var_c(k).

Shape letters: B batch, H query heads, N tokens, C channels, F features, R rows.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from sigmoid_attention.attention.bias import RowContext
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.integrations.conversion import SoftmaxStart, Student
from sigmoid_attention.integrations.conversion.calibration import solve_ridge
from sigmoid_attention.integrations.transformers import attention_modules, replace_bias
from sigmoid_attention.nn.state_bias import InputBias
from sigmoid_attention.studies.conversion.parents import load_parent
from sigmoid_attention.studies.conversion.text import TokenSequences
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.terminal import in_sentences

# A weight is p / (1 + p / GAIN), with GAIN so large that the model computes the softmax.
GAIN = 1e4
FITTED, BATCHES, RIDGE = 256, 10, 1e-2
BANDS = (0, 256, 512, 1024, 2048)
FEATURES = {
    "a number": (),
    "and log m": ("log m",),
    "and the query": ("log m", "query"),
    "or the layer's input": ("log m", "input"),
    "the input and the mean logit": ("log m", "input", "mean"),
    "and the logits' variance": ("log m", "input", "mean", "variance"),
    "the mean logit, not the input": ("log m", "mean"),
}


class RowObserver(nn.Module, InputBias):
    """Replaces the bias of a module, and passes every row to ``use``."""

    def __init__(self, use: Callable[[dict[str, Tensor], Tensor], None]) -> None:
        super().__init__()
        self.use = use

    def resolve(self, rows: RowContext, input_BNC: Tensor | None = None) -> Tensor:
        lse_BHN1 = rows.row_lse()
        log_m = rows.visible_counts().double().log().expand(lse_BHN1.shape)
        queries: Tensor = rows.query  # pyright: ignore[reportAttributeAccessIssue]
        assert input_BNC is not None
        input_BHNC = input_BNC[:, None].expand(-1, lse_BHN1.shape[1], -1, -1)
        features = {"log m": log_m, "query": queries, "input": input_BHNC}
        self.use(features | _moments(rows), lse_BHN1.double())
        return SoftmaxStart(GAIN).resolve(rows)


def _moments(rows: RowContext) -> dict[str, Tensor]:
    """The mean of each row's logits, and their variance if the channels were independent."""
    assert isinstance(rows, Problem)
    mean = rows.mean_logits()
    squared = replace(rows, query=rows.query.square(), key=rows.key.square(), scale=rows.scale**2)
    # Σ_c q_c² k̄_c² needs the mean of each channel.
    keys = rows.padded().key.double()
    means = keys.cumsum(2) / rows.visible_counts().double()
    means = means.repeat_interleave(rows.heads // means.shape[1], 1)
    of_means = (rows.query.double().square() * means.square()).sum(-1, keepdim=True)
    return {"mean": mean, "variance": squared.mean_logits() - rows.scale**2 * of_means}


class Predictor:
    """Least squares for every head of a module, with one set of features."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.gram_HFF: Tensor | float = 0.0
        self.moment_HF1: Tensor | float = 0.0

    def features(self, inputs: dict[str, Tensor], lse_BHN1: Tensor) -> Tensor:
        parts = [torch.ones_like(lse_BHN1), *(inputs[name].double() for name in self.names)]
        return torch.cat(parts, dim=-1).transpose(0, 1).flatten(1, 2)

    def watch(self, inputs: dict[str, Tensor], lse_BHN1: Tensor) -> None:
        features_HRF = self.features(inputs, lse_BHN1)
        target_HR1 = lse_BHN1.transpose(0, 1).flatten(1, 2)
        self.gram_HFF = self.gram_HFF + features_HRF.mT @ features_HRF
        self.moment_HF1 = self.moment_HF1 + features_HRF.mT @ target_HR1

    @cached_property
    def solved_HF1(self) -> Tensor:
        """The solution for all rows so far; the ridge is relative to each feature's size."""
        assert isinstance(self.gram_HFF, Tensor) and isinstance(self.moment_HF1, Tensor)
        return solve_ridge(self.gram_HFF, self.moment_HF1, RIDGE)

    def error(self, inputs: dict[str, Tensor], lse_BHN1: Tensor) -> Tensor:
        """The error (H, N) for a batch of one sequence."""
        return (self.features(inputs, lse_BHN1) @ self.solved_HF1)[..., 0] - lse_BHN1[0, ..., 0]


@torch.no_grad()
def errors(model: str, data: str, sequences: int) -> dict[str, list[float]]:
    """The RMS error in each band of positions, by set of features; the median over heads."""
    parent = load_parent(model)
    corpus = load_corpus(data)
    short = TokenSequences(parent, corpus, seq_len=FITTED, batch_size=4, seed=0)
    long = TokenSequences(parent, corpus, seq_len=BANDS[-1], batch_size=1, seed=0)
    student = Student(parent.copy(), form="constant", gain=GAIN).model
    predictors = {
        module: {name: Predictor(features) for name, features in FEATURES.items()}
        for module in attention_modules(student).values()
    }
    for module, own_predictors in predictors.items():

        def watch(
            inputs: dict[str, Tensor], lse_BHN1: Tensor, own_predictors=own_predictors
        ) -> None:
            for predictor in own_predictors.values():
                predictor.watch(inputs, lse_BHN1)

        replace_bias(module, RowObserver(watch))  # pyright: ignore[reportArgumentType]
    _run(student, (short.batch(step) for step in range(BATCHES)))
    found: dict[str, list[list[Tensor]]] = {name: [[] for _ in BANDS[1:]] for name in FEATURES}
    for module, own_predictors in predictors.items():

        def judge(
            inputs: dict[str, Tensor], lse_BHN1: Tensor, own_predictors=own_predictors
        ) -> None:
            for name, predictor in own_predictors.items():
                squared_HN = predictor.error(inputs, lse_BHN1).square()
                for band, (first, end) in enumerate(pairwise(BANDS)):
                    # The first token is left out, because it attends to itself only.
                    found[name][band].append(squared_HN[:, max(first, 1) : end].mean(1).sqrt())

        replace_bias(module, RowObserver(judge))  # pyright: ignore[reportArgumentType]
    _run(student, long.heldout_batches(sequences))
    return {
        name: [float(torch.cat(band).median()) for band in bands] for name, bands in found.items()
    }


def _run(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> None:
    for batch in batches:
        model(**batch, use_cache=False)


def table(found: dict[str, list[float]]) -> str:
    """A Markdown table with a row for each set of features."""
    bands = [f"{first} to {end - 1}" for first, end in pairwise(BANDS)]
    lines = ["| | " + " | ".join(bands) + " |", "|---" * (len(bands) + 1) + "|"]
    for name, values in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m sigmoid_attention.studies.conversion.normaliser MODEL`, a causal one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="as `sigmoid-attention convert` takes it")
    parser.add_argument("--data", default="shakespeare", help="text; part of it is held out")
    parser.add_argument("--sequences", type=int, default=2, help="held-out sequences to predict on")
    options = parser.parse_args(arguments)
    print(table(errors(options.model, options.data, options.sequences)))


if __name__ == "__main__":
    sys.exit(in_sentences(main))
