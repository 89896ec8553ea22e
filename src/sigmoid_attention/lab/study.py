"""What a study of a published claim is: its tasks, the rule of its verdicts, its figure.

A study is a file of a room with one `Study` called STUDY; the registry collects them. Tasks
run in worker processes, so that `run` is a function of a module and a setting a frozen dataclass
of numbers, strings and tuples.
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
    """One measured number of one fit; NaN and -1 where n, replicate or step say nothing."""

    quantity: str
    value: float
    n: float = math.nan
    replicate: int = NONE
    step: int = NONE
    converged: bool = True
    at_box: bool = False


@dataclass(frozen=True)
class Task:
    """A piece of work that is done as a whole; rows of the same key are rows of the same work.

    The key is of the function, its setting and the version of this library, not of its code.

    ``cell`` names the line of the study's table that it belongs to, ``part`` what it is there for
    (a window of n, a control); ``work`` is how long it takes beside the others.
    """

    cell: str
    part: str
    setting: Any
    run: Callable[[Any], Iterable[Row]]
    work: float = 1.0

    @property
    def key(self) -> str:
        named = f"{self.run.__module__}.{self.run.__qualname__}"
        text = json.dumps([__version__, named, asdict(self.setting)], sort_keys=True)
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
        place = {n: i for i, n in enumerate(sizes)}
        for row in chosen:
            if row.converged:
                values[place[row.n], row.replicate] = row.value
        return np.array(sizes), values

    def values(self, quantity: str) -> np.ndarray:
        """All values of a quantity, in the order of the rows, converged or not."""
        return np.array([row.value for row in self.rows if row.quantity == quantity])

    def share(self, quantity: str) -> float:
        """The share of fits that converged."""
        chosen = [row.converged for row in self.rows if row.quantity == quantity]
        return sum(chosen) / len(chosen) if chosen else math.nan


# Cell and part to what was measured: several tasks of one cell and part are several truths.
Results = Mapping[tuple[str, str], Sequence[Measured]]


@dataclass(frozen=True)
class Finding:
    """A line of the study's table, computed from its rows by its rule."""

    cell: str
    claim: str
    measured: str
    verdict: str
    because: str
    # Which rows carried it: converged share, gain against parameters, hits of the box.
    controls: str = ""


@dataclass(frozen=True)
class Study:
    """A published claim, how it is put to the test here, and how a verdict follows.

    ``rule`` is the rule in words; ``judge`` is the rule. ``draw`` makes the figure.
    """

    name: str
    title: str
    claim: str
    source: str
    rule: str
    tasks: Callable[[], list[Task]]
    judge: Callable[[Results], list[Finding]]
    draw: Callable[[Results], "Figure"]
