"""The implementation of attention in the sigmoid arm, and its gain by fusion.

If a fused kernel runs, the cost part also times the arm without it, in the same rounds. The gain is
not part of the verdict, which compares the arms as they are.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import torch
from rich.console import Console

from sigmoid_attention.attention import explain
from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.attention.impl.cpu.library import Choice, decision
from sigmoid_attention.lab.rows import NONE, SIGMOID
from sigmoid_attention.lab.statistics import median_interval, paired_ratio
from sigmoid_attention.studies.compare.results import UNFUSED, Fusion, Gain
from sigmoid_attention.studies.compare.summary import STEP, TIMES, select, select_values

# The key of the operator's description in the machine's description, which the rows hold.
OPERATOR = "sigmoid_operator"


@dataclass(frozen=True)
class Operator:
    """The operator of impl="auto": the name of the fused kernels ("" if none), and its words."""

    path: str
    words: str


def operator_in_use(device: torch.device, console: Console, head_dim: int = 64) -> Operator:
    """The operator of sigmoid attention in training on `device`, as reported by the dispatcher.

    A missing CPU kernel is compiled before anything is timed. This takes seconds, and a line on the
    console reports it.

    Raises:
        ValueError: `SIGMOID_ATTENTION_CPU` is not a vector path, or one that cannot run here.
    """
    if device.type == "cpu":
        with _log_on(console):
            loaded()
    query = torch.zeros(1, 1, 8, head_dim, device=device, requires_grad=True)
    explanation = explain(query, query, query, bias=-1.0)
    if explanation.implementation == "triton":
        return Operator("triton", f"the fused Triton kernels on {device.type}")
    chosen = decision() or Choice()
    if explanation.implementation == "cpu":
        path = "; ".join(filter(None, (f"vector path {chosen.path}", chosen.problem)))
        return Operator(chosen.path, f"the fused C++ kernel ({path})")
    refusals = dict(explanation.refusals)
    reason = refusals["triton"] if device.type == "cuda" else chosen.problem or refusals["cpu"]
    return Operator("", f"PyTorch alone (no fused kernel: {reason})")


class _Lines(logging.Handler):
    """Prints each log message on its own line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _log_on(console: Console) -> Iterator[None]:
    """A context that prints the library's log messages, including those about compilation."""
    log = logging.getLogger("sigmoid_attention")
    level = log.level
    handler = _Lines(console)
    if not console.quiet:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def fusion(rows: pa.Table) -> Fusion | None:
    """The operator of the sigmoid arm and its gain by fusion; None if the arm was not timed."""
    machines = select_values(rows, STEP, "machine", arm=SIGMOID)
    if not machines:
        return None
    operator = json.loads(machines[0])[OPERATOR]
    labels = {STEP: "Training step", **TIMES}
    gains = [gain for metric, label in labels.items() for gain in _gains(rows, metric, label)]
    return Fusion(operator, gains)


def _gains(rows: pa.Table, metric: str, label: str) -> Iterator[Gain]:
    for length, by_arm in select(rows, metric, by="step", arms=(UNFUSED, SIGMOID)).items():
        shared = sorted(by_arm[UNFUSED].keys() & by_arm[SIGMOID].keys())
        if not shared:
            continue
        without, fused = ([by_arm[arm][turn] for turn in shared] for arm in (UNFUSED, SIGMOID))
        yield Gain(
            metric,
            label if length == NONE else f"{label}, {length:,} tokens",
            length,
            median_interval(without),
            median_interval(fused),
            paired_ratio(without, fused),
        )
