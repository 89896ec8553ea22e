"""Data for weighted least squares: samples, or the sufficient statistics of n observations.

Shape letters: B problems (replicates times sample sizes), Q inputs or rows of a chunk, d dimension.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.extras import lab_imports

with lab_imports("sigmoid_attention.mixtures"):
    import numpy as np

ROWS_OF_A_CHUNK = 8192


@dataclass(frozen=True)
class Chunk:
    """Means of observations at inputs: those shared by all problems are (Q, d), else (B, Q, d)."""

    inputs: Tensor
    mean_BQ: Tensor
    weight_BQ: Tensor


class LeastSquares(Protocol):
    """B problems: sum over q of weight (mean - f(input))^2, and a term independent of f."""

    @property
    def n_B(self) -> Tensor:
        """Observations of each problem, float64."""
        ...

    @property
    def within_B(self) -> Tensor:
        """Sum of squares of the observations about the means."""
        ...

    def chunks(self, which: Tensor) -> Iterator[Chunk]:
        """The data of the problems with these indices, piece by piece."""
        ...


@dataclass(frozen=True)
class Summaries:
    """Problems as counts and means at shared inputs, which are sufficient for a fit."""

    inputs_Qd: Tensor
    mean_BQ: Tensor
    count_BQ: Tensor
    within_B: Tensor

    @property
    def n_B(self) -> Tensor:
        return self.count_BQ.sum(-1)

    def chunks(self, which: Tensor) -> Iterator[Chunk]:
        yield Chunk(self.inputs_Qd, self.mean_BQ[which], self.count_BQ[which])


@dataclass(frozen=True)
class FiniteDesign:
    """Inputs drawn uniformly from finitely many nodes.

    The counts and means at the nodes are sufficient, and are drawn exactly from their law. The cost
    therefore does not depend on n: 1e13 observations cost as much as 1e3. The inputs are bounded,
    as the papers assume, but their law is not continuous; ``RawData`` serves for comparison.

    Raises:
        TypeError: inputs that are no tensor.
        ValueError: fewer than two nodes, or a number that is not finite.

    Example:
        >>> import torch
        >>> from sigmoid_attention.mixtures import FiniteDesign
        >>> design = FiniteDesign.sobol(64, d=2)
        >>> data = design.draw(torch.zeros(64), [100, 10**12], sigma=0.1, seed=0)
        >>> data.n_B.tolist()
        [100.0, 1000000000000.0]
    """

    inputs_Qd: Tensor

    def __post_init__(self) -> None:
        arguments.tensor("inputs_Qd", self.inputs_Qd)
        if self.inputs_Qd.dim() != 2 or self.inputs_Qd.shape[0] < 2:
            raise ValueError(
                f"inputs must be (nodes, d) with 2 nodes or more, got {tuple(self.inputs_Qd.shape)}"
            )
        if not self.inputs_Qd.isfinite().all():
            raise ValueError("inputs must be finite")

    @classmethod
    def sobol(cls, nodes: int = 256, *, d: int, seed: int = 0, half_width: float = 1.0):
        """Scrambled Sobol points of [-half_width, half_width]^d; an even grid where d is 1."""
        if d == 1:
            return cls(torch.linspace(-half_width, half_width, nodes, dtype=torch.float64)[:, None])
        engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed)
        # Torch divides the first point's integers in its default dtype.
        first = engine.quasi.to(torch.float32) / 2**engine.MAXBIT
        points = engine.draw(nodes, dtype=torch.float32)
        points[:1] = first
        return cls((points.double() * 2 - 1) * half_width)

    def draw(self, truth_Q: Tensor, sizes: list[int], *, sigma: float, seed: int) -> Summaries:
        """A data set of each size with Gaussian noise of standard deviation ``sigma``.

        Args:
            truth_Q: the regression function at the nodes.
            seed: a data set depends on it and its place in ``sizes`` only.
        """
        nodes = self.inputs_Qd.shape[0]
        even = np.full(nodes, 1.0 / nodes)
        counts, noise, within = [], [], []
        for problem, size in enumerate(sizes):
            if size < 1:
                raise ValueError(f"sizes must be 1 or more, got {size}")
            rng = np.random.default_rng([seed, problem])
            count = rng.multinomial(size, even)
            # The mean of a node without observations has no effect; its count is 0.
            noise.append(rng.standard_normal(nodes) / np.sqrt(np.maximum(count, 1)))
            spare = size - int((count > 0).sum())
            within.append(rng.chisquare(spare) if spare > 0 else 0.0)
            counts.append(count)
        means = truth_Q.double() + sigma * torch.from_numpy(np.stack(noise))
        return Summaries(
            self.inputs_Qd,
            means,
            torch.from_numpy(np.stack(counts)).double(),
            sigma**2 * torch.tensor(within, dtype=torch.float64),
        )


@dataclass(frozen=True)
class Samples:
    """Data sets of the same n, each with inputs of its own, uniform on [-w, w]^d."""

    inputs_BQd: Tensor
    observations_BQ: Tensor

    @classmethod
    def draw(
        cls,
        function: Callable[[Tensor], Tensor],
        *,
        count: int,
        n: int,
        d: int,
        sigma: float,
        seed: int,
        half_width: float = 1.0,
    ) -> "Samples":
        """``count`` data sets of n observations function(x) + sigma times a standard normal."""
        rng = torch.Generator().manual_seed(seed)
        inputs = torch.rand(count, n, d, generator=rng, dtype=torch.float64) * 2 - 1
        inputs = inputs * half_width
        noise = torch.randn(count, n, generator=rng, dtype=torch.float64)
        return cls(inputs, function(inputs) + sigma * noise)

    @property
    def n_B(self) -> Tensor:
        count, n = self.observations_BQ.shape
        return torch.full((count,), float(n), dtype=torch.float64)

    @property
    def within_B(self) -> Tensor:
        return torch.zeros(len(self.observations_BQ), dtype=torch.float64)

    def chunks(self, which: Tensor) -> Iterator[Chunk]:
        rows = self.observations_BQ.shape[1]
        # A chunk's Jacobians should stay in the caches for any number of problems.
        size = max(1, ROWS_OF_A_CHUNK // max(len(which), 1))
        for first in range(0, rows, size):
            part = slice(first, first + size)
            mean = self.observations_BQ[which, part]
            yield Chunk(self.inputs_BQd[which, part], mean, torch.ones_like(mean))


Source = Callable[[int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RawData:
    """One data set, read in chunks, with a memory use independent of n.

    ``read(i)`` returns inputs (rows, d) and observations (rows,) of chunk i, the same ones on every
    call: arrays, memory maps, or a simulation seeded by i.
    """

    read: Source
    count: int
    n: int

    @classmethod
    def of(
        cls, inputs: np.ndarray, observations: np.ndarray, chunk: int = ROWS_OF_A_CHUNK
    ) -> "RawData":
        """The data set of arrays or memory maps (n, d) and (n,).

        Raises:
            ValueError: shapes that do not fit, no rows, or numbers that are not finite.
        """
        if inputs.ndim != 2 or observations.shape != inputs.shape[:1] or len(inputs) == 0:
            raise ValueError(
                f"data must be (n, d) and (n,) with n of 1 or more, "
                f"got {inputs.shape} and {observations.shape}"
            )
        count = -(-len(inputs) // chunk)

        def read(i: int) -> tuple[np.ndarray, np.ndarray]:
            rows = slice(i * chunk, (i + 1) * chunk)
            return inputs[rows], observations[rows]

        for i in range(count):
            if not all(np.isfinite(part).all() for part in read(i)):
                raise ValueError(f"data must be finite, but is not in rows from {i * chunk} on")
        return cls(read, count, len(inputs))

    @property
    def n_B(self) -> Tensor:
        return torch.tensor([float(self.n)], dtype=torch.float64)

    @property
    def within_B(self) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def chunks(self, which: Tensor) -> Iterator[Chunk]:
        for i in range(self.count):
            inputs, observations = (
                torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64))
                for part in self.read(i)
            )
            mean = observations.expand(len(which), -1)
            yield Chunk(inputs, mean, torch.ones_like(mean))


def binned(inputs: np.ndarray, observations: np.ndarray, bins: int = 2000) -> Summaries:
    """Means over the cells of an even grid: smaller data, in few dimensions nearly the same fit.

    Args:
        inputs: (n, d). observations: (n,).
        bins: of equal width along each axis, from the least input to the largest.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: shapes that do not fit, or more cells than can be numbered.

    Example:
        >>> import numpy as np
        >>> inputs = np.random.default_rng(0).uniform(-1, 1, (10_000, 2))
        >>> data = binned(inputs, inputs.sum(1), bins=10)
        >>> len(data.inputs_Qd), data.n_B.item()
        (100, 10000.0)
    """
    for name, array in (("inputs", inputs), ("observations", observations)):
        arguments.instance(name, array, np.ndarray, "an array of NumPy")
    arguments.whole("bins", bins, 1, "a whole number of 1 or more")
    if inputs.ndim != 2 or observations.shape != inputs.shape[:1] or len(inputs) == 0:
        raise ValueError(
            f"data must be (n, d) and (n,) with n of 1 or more, "
            f"got {inputs.shape} and {observations.shape}"
        )
    dim = inputs.shape[1]
    if bins**dim > np.iinfo(np.int64).max:
        raise ValueError(f"bins: {bins} along each of {dim} axes make too many cells")
    low = inputs.min(0)
    width = (inputs.max(0) - low) / bins
    place = (inputs - low) / np.where(width > 0, width, 1.0)
    grid = np.minimum(place.astype(np.int64), bins - 1)
    number = np.ravel_multi_index(tuple(grid.T), (bins,) * dim)
    _, cell, count = np.unique(number, return_inverse=True, return_counts=True)
    mean_x = np.stack([np.bincount(cell, x) for x in inputs.T], axis=1) / count[:, None]
    mean_y = np.bincount(cell, observations) / count
    within = float((observations**2).sum() - (count * mean_y**2).sum())
    as_row = lambda values: torch.from_numpy(values.astype(np.float64))[None]  # noqa: E731
    return Summaries(
        torch.from_numpy(mean_x), as_row(mean_y), as_row(count),
        torch.tensor([max(within, 0.0)], dtype=torch.float64),
    )  # fmt: skip
