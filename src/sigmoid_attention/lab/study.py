"""Defines the study of a published claim: its tasks, the rule of its verdicts, and its figure.

A study is a module in a folder of `studies` with one `Study` called STUDY; `studies.registry` lists
them. Tasks run in worker processes. So the `run` of a task is a module-level function, and its
setting is a frozen dataclass of numbers, strings and tuples.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sigmoid_attention import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = -1


@dataclass(frozen=True)
class Row:
    """One measured number of one fit; NaN or -1 if n, replicate or step do not apply."""

    quantity: str
    value: float
    n: float = math.nan
    replicate: int = NONE
    step: int = NONE
    converged: bool = True
    at_box: bool = False


@dataclass(frozen=True)
class Task:
    """A unit of work. Two tasks with the same key do the same work.

    The key is a hash of the function's name, its setting and the version of this library.

    ``cell`` is the line of the study's table that the task belongs to, ``part`` its purpose there
    (a window of n, a control); ``work`` is its duration relative to the other tasks.
    """

    cell: str
    part: str
    setting: Any
    run: Callable[[Any], Iterable[Row]]
    work: float = 1.0

    @property
    def key(self) -> str:
        function = f"{self.run.__module__}.{self.run.__qualname__}"
        text = json.dumps([__version__, function, asdict(self.setting)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Measured:
    """The rows of one task."""

    rows: Sequence[Row]

    def grid(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Sizes (N,) and values (N, R); NaN where a fit did not converge."""
        chosen = [row for row in self.rows if row.quantity == quantity]
        sizes = sorted({row.n for row in chosen})
        count = 1 + max((row.replicate for row in chosen), default=NONE)
        values = np.full((len(sizes), count), np.nan)
        index = {n: i for i, n in enumerate(sizes)}
        for row in chosen:
            if row.converged:
                values[index[row.n], row.replicate] = row.value
        return np.array(sizes), values

    def values(self, quantity: str) -> np.ndarray:
        """All values of a quantity, in the order of the rows, converged or not."""
        return np.array([row.value for row in self.rows if row.quantity == quantity])

    def share(self, quantity: str) -> float:
        """The share of fits that converged."""
        chosen = [row.converged for row in self.rows if row.quantity == quantity]
        return sum(chosen) / len(chosen) if chosen else math.nan


# The measurements of each cell and part; its tasks differ in the true parameters.
Results = Mapping[tuple[str, str], Sequence[Measured]]


@dataclass(frozen=True)
class Finding:
    """A line of the study's table, computed from its rows by its rule."""

    cell: str
    claim: str
    measured: str
    verdict: str
    because: str
    # Checks of the finding: converged share, gain against parameters, fits at the bounds.
    controls: str = ""
    # The largest chance that the rule decides this line wrongly by the luck of the draw; None where
    # no interval decides it.
    chance: float | None = None


@dataclass(frozen=True)
class Study:
    """A published claim, the tasks that test it, and the rule that gives the verdict.

    ``rule`` states the rule in words, and ``judge`` computes it. ``draw`` makes the figure, and
    ``remark`` a paragraph below the table, from the same results.
    """

    name: str
    title: str
    claim: str
    source: str
    rule: str
    tasks: Callable[[], list[Task]]
    judge: Callable[[Results], list[Finding]]
    draw: Callable[[Results], "Figure"]
    remark: Callable[[Results], str] | None = None
