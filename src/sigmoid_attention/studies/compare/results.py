"""The results of a comparison: its rows, a summary of them, and a verdict.

The rows are the measurements in long form, one value each. Everything else is computed from the
rows. The table in the terminal and the report use only the classes of this file.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from sigmoid_attention.lab.statistics import Interval

# The sigmoid arm, timed without a fused kernel.
UNFUSED = "sigmoid_unfused"


@dataclass(frozen=True)
class Solved:
    """The number of seeds that solved a task, in each arm and in both, of the `seeds` in common."""

    softmax: int
    sigmoid: int
    both: int
    seeds: int


@dataclass(frozen=True)
class SummaryRow:
    """One question of the comparison: the value of each arm, and the difference of the arms.

    `difference` is sigmoid - softmax if `kind` is "difference", and sigmoid / softmax if it is
    "ratio" (times, memory); it is paired in both cases. `length` is in tokens, -1 if it does not
    apply. `silent` is the reason why the row does not compare the arms, "" if it does. `solved` is
    set for all-or-nothing tasks, whose mean describes no run.
    """

    metric: str
    label: str
    unit: str
    length: int
    lower_is_better: bool
    softmax: Interval
    sigmoid: Interval
    difference: Interval
    kind: Literal["difference", "ratio"]
    silent: str = ""
    solved: Solved | None = None


@dataclass(frozen=True)
class Gain:
    """A time of the sigmoid arm, unfused and fused, in seconds; `ratio` is fused / unfused.

    `ratio` is paired by round; `length` is in tokens, -1 if it does not apply.
    """

    metric: str
    label: str
    length: int
    unfused: Interval
    fused: Interval
    ratio: Interval


@dataclass(frozen=True)
class Fusion:
    """The operator of the sigmoid arm, in words, and its gains by fusion.

    `gains` is empty if no fused kernel ran.
    """

    operator: str
    gains: list[Gain]


@dataclass(frozen=True)
class Verdict:
    """The answer in a line and in a paragraph, and the rule by which it was computed.

    `rule` states how a question is judged; `order` lists the headlines, of which the first that
    holds is taken.
    """

    headline: str
    paragraph: str
    rule: tuple[str, ...]
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """A recommended next step, and its command, "" if there is none."""

    words: str
    command: str = ""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: `rows` has the columns of `ROW_SCHEMA`, the rest is computed from it.

    `setting`, `machine`, `versions` and `provenance` are stored in the rows as JSON; `provenance`
    is of the training text. `fusion` is None if no times were measured. `path` is the file of the
    rows, "" if there is none; `advice` is computed from the rows as well.
    """

    rows: pa.Table
    summary: list[SummaryRow]
    fusion: Fusion | None
    verdict: Verdict
    setting: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, Any]
    provenance: dict[str, Any]
    path: str = ""
    advice: tuple[Advice, ...] = ()
