"""The results of a comparison: its rows, a summary of them, and a verdict.

The rows are the measurements in long form, one value each; everything else is computed from them.
The table in the terminal and the report read only the classes of this file.
"""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from sigmoid_attention.lab.statistics import Interval

# The sigmoid arm again, timed with what would compute its attention if nothing were fused.
UNFUSED = "sigmoid_unfused"


@dataclass(frozen=True)
class Solved:
    """How many of the `seeds` that both arms have solved a task: in each arm, and in both."""

    softmax: int
    sigmoid: int
    both: int
    seeds: int


@dataclass(frozen=True)
class SummaryRow:
    """One question put to both arms: what each measured, and how far they lie apart.

    `difference` is sigmoid - softmax where `kind` is "difference", sigmoid / softmax where it is
    "ratio" (times, memory); paired by seed in both cases. `length` is in tokens, -1 where the
    question has none. `silent` is the reason why the row does not compare the arms, "" if it does.
    `solved` is there where a mean describes no run: some solved the task, others failed.
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
    """A time that the sigmoid arm takes unfused and fused, in seconds; `ratio` is fused / unfused.

    `ratio` is paired by round; `length` is in tokens, -1 where the question has none.
    """

    metric: str
    label: str
    length: int
    unfused: Interval
    fused: Interval
    ratio: Interval


@dataclass(frozen=True)
class Fusion:
    """What computed the sigmoid arm's attention, in words, and what its being fused gained.

    `gains` is empty where nothing fused ran.
    """

    operator: str
    gains: list[Gain]


@dataclass(frozen=True)
class Verdict:
    """The answer in a line and in a paragraph, and the rule by which it was computed.

    `rule` states how a question is judged, `order` which headline is taken: the first that holds.
    """

    headline: str
    paragraph: str
    rule: tuple[str, ...]
    order: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """What to do next, and the command that does it, "" where there is none."""

    words: str
    command: str = ""


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: `rows` has the columns of `ROW_SCHEMA`, the rest is read off it.

    `setting`, `machine`, `versions` and `provenance` are what the rows carry as JSON; `provenance`
    is that of the text the models were trained on. `fusion` is None where no times were taken.
    `path` is the file of the rows, "" if there is none; `advice` is computed from the rows as well.
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
