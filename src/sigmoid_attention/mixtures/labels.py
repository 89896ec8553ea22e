"""Data for classification: labels, or counts of n labelled observations.

Shape letters: B problems, A of them active, Q inputs or rows of a chunk, S classes, d dimension.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.mixtures.data import ROWS_OF_A_CHUNK, FiniteDesign

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np


@dataclass(frozen=True)
class LabelChunk:
    """At each input the number of observations and the share of every class among them."""

    inputs_Qd: Tensor
    share_AQS: Tensor
    count_AQ: Tensor


class Labelled(Protocol):
    """B problems of labels at inputs."""

    @property
    def n_B(self) -> Tensor:
        """Observations of each problem, float64."""
        ...

    def chunks(self, which_A: Tensor) -> Iterator[LabelChunk]:
        """The data of the problems with these indices, piece by piece."""
        ...


@dataclass(frozen=True)
class LabelCounts:
    """Problems with shared inputs: the count at each input, and the share of each class in it."""

    inputs_Qd: Tensor
    share_BQS: Tensor
    count_BQ: Tensor

    @property
    def n_B(self) -> Tensor:
        return self.count_BQ.sum(-1)

    def chunks(self, which_A: Tensor) -> Iterator[LabelChunk]:
        yield LabelChunk(self.inputs_Qd, self.share_BQS[which_A], self.count_BQ[which_A])


def draw_labels(
    design: FiniteDesign, probability_QS: Tensor, sizes: list[int], *, seed: int
) -> LabelCounts:
    """A data set of each size on a finite design, at a cost that does not depend on n.

    Counts of nodes, and of classes at a node, are multinomial; together they are sufficient.

    Args:
        probability_QS: the probability of each class at the nodes.
        seed: a data set depends on it and its place in ``sizes`` only.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import FiniteDesign
        >>> design = FiniteDesign.sobol(64, d=2)
        >>> even = torch.full((64, 3), 1 / 3, dtype=torch.float64)
        >>> data = draw_labels(design, even, [100, 10**13], seed=0)
        >>> data.n_B.tolist()
        [100.0, 10000000000000.0]
        >>> bool((data.share_BQS[1] - 1 / 3).abs().max() < 1e-5)
        True
    """
    nodes = len(design.inputs_Qd)
    even = np.full(nodes, 1.0 / nodes)
    counts, shares = [], []
    for problem, size in enumerate(sizes):
        if size < 1:
            raise ValueError(f"sizes must be 1 or more, got {size}")
        rng = np.random.default_rng([seed, problem])
        count_Q = rng.multinomial(size, even)
        seen_QS = rng.multinomial(count_Q, probability_QS.numpy())
        counts.append(count_Q)
        shares.append(seen_QS / np.maximum(count_Q, 1)[:, None])
    return LabelCounts(
        design.inputs_Qd,
        torch.from_numpy(np.stack(shares)),
        torch.from_numpy(np.stack(counts)).double(),
    )


@dataclass(frozen=True)
class RawLabels:
    """One data set, row by row: inputs (n, d) and labels (n,) of 0 to classes - 1."""

    inputs: np.ndarray
    labels: np.ndarray
    classes: int
    chunk: int = ROWS_OF_A_CHUNK

    @classmethod
    def of(
        cls, inputs: np.ndarray, labels: np.ndarray, classes: int, chunk: int = ROWS_OF_A_CHUNK
    ) -> "RawLabels":
        """The data set of arrays or memory maps, which are read in chunks.

        Raises:
            ValueError: shapes that do not fit, no rows, inputs that are not finite, or labels that
                are no whole numbers of 0 to classes - 1.

        Example:
            >>> import numpy as np
            >>> RawLabels.of(np.zeros((2, 1)), np.array([0, 3]), classes=3)
            Traceback (most recent call last):
            ValueError: labels must be whole numbers from 0 to 2, got 3 in row 1
        """
        if inputs.ndim != 2 or labels.shape != inputs.shape[:1] or len(inputs) == 0:
            raise ValueError(
                f"data must be (n, d) and (n,) with n of 1 or more, "
                f"got {inputs.shape} and {labels.shape}"
            )
        for first in range(0, len(inputs), chunk):
            rows = slice(first, first + chunk)
            if not np.isfinite(inputs[rows]).all():
                raise ValueError(f"data must be finite, but is not in rows from {first} on")
            wrong = ~np.isin(labels[rows], np.arange(classes))
            if wrong.any():
                row = first + int(wrong.argmax())
                raise ValueError(
                    f"labels must be whole numbers from 0 to {classes - 1}, "
                    f"got {labels[row]} in row {row}"
                )
        return cls(inputs, labels, classes, chunk)

    @property
    def n_B(self) -> Tensor:
        return torch.tensor([float(len(self.inputs))], dtype=torch.float64)

    def chunks(self, which_A: Tensor) -> Iterator[LabelChunk]:
        for first in range(0, len(self.inputs), self.chunk):
            rows = slice(first, first + self.chunk)
            inputs = torch.from_numpy(np.array(self.inputs[rows], dtype=np.float64))
            labels = torch.from_numpy(np.array(self.labels[rows], dtype=np.int64))
            share_QS = torch.nn.functional.one_hot(labels, self.classes).double()
            count_Q = torch.ones(len(labels), dtype=torch.float64)
            count = len(which_A)
            yield LabelChunk(inputs, share_QS.expand(count, -1, -1), count_Q.expand(count, -1))
