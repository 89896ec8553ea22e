"""The report's last section: rules, data, machine, and the command that repeats the run."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from sigmoid_attention.report.comparison_values import ComparisonValues
from sigmoid_attention.report.format import plain, quantity
from sigmoid_attention.report.html import from_template
from sigmoid_attention.studies.compare.results import Comparison
from sigmoid_attention.studies.compare.summary import (
    UNIT_END,
    UNIT_SECONDS,
    select_values,
    whole_run_peak,
)

ONE_RATE = (
    "Both arms share every setting, the learning rate among them. Either might do better with "
    "another (see --lr and --softmax-lr)."
)
TWO_RATES = "The arms have learning rates of their own on text, and share every other setting."
LIMITS = (
    "A seed changes the initial weights and the order of the data, never the text itself. The "
    "intervals say what other seeds would give on this text, not what other texts would.",
    "A gap at this size and this many steps may close or open in larger and longer training.",
    "Held-out text comes from the same source as the training text.",
    "Times and memory are those of this machine and these versions. Memory on a CPU is that of "
    "tensors; the working arrays inside a fused operator are not counted.",
    "Seconds of training are steps times the median time of one step, without tests and "
    "recording. “8% faster” means 8% less time.",
)


def method(comparison: Comparison, measured: ComparisonValues) -> Markup:
    """The section's HTML: rules, limits, rows and command as prose, then the facts as lists."""
    setting = dict(comparison.setting)
    command = setting.pop("command", None)
    parts = {name: part for name, part in setting.items() if isinstance(part, Mapping)}
    text, commit = setting.get("text", {}), commits(comparison.rows)
    rates = ONE_RATE if text.get("lr") == text.get("softmax_lr") else TWO_RATES
    run = {name: value for name, value in setting.items() if name not in parts}
    facts = {
        "Run": {**run, **_run_facts(comparison, measured)},
        "Data": comparison.provenance,
        "Machine": comparison.machine,
        "Versions": comparison.versions | ({"commit": commit} if commit else {}),
    }
    return from_template(
        "method.html",
        rules=comparison.verdict.rule,
        headlines=comparison.verdict.order,
        limits=(rates, *LIMITS),
        path=comparison.path,
        path_in_python=repr(comparison.path),
        command=command and str(command),
        facts={title: list(_flat(part)) for title, part in facts.items()},
        settings={title: list(_flat(part)) for title, part in parts.items()},
    )


def when(rows: pa.Table) -> dict[str, str]:
    """The start of the first unit, the end of the last (UTC), and the total time, in words.

    Breaks between the units do not count. Empty if the rows do not have these times.
    """
    ends = select_values(rows, UNIT_END, "value")
    seconds = select_values(rows, UNIT_SECONDS, "value")
    if not ends:
        return {}
    begun = min(end - spent for end, spent in zip(ends, seconds, strict=True))
    minutes, rest = divmod(round(sum(seconds)), 60)
    return {
        "begun": _date(begun),
        "finished": _date(max(ends)),
        "duration": f"{minutes} min {rest:02d} s" if minutes else f"{rest} s",
    }


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def commits(rows: pa.Table) -> str:
    """The source commits of the rows; several if the source changed during the comparison."""
    stamps = [json.loads(text) for text in rows["versions"].unique().to_pylist() if text]
    return ", ".join(sorted({stamp["commit"] for stamp in stamps if "commit" in stamp}))


def _run_facts(comparison: Comparison, measured: ComparisonValues) -> dict[str, Any]:
    """Facts on the run, from the rows."""
    seeds = measured.seeds("train_loss") or measured.seeds("validation_bits_per_byte")
    facts: dict[str, Any] = {"seeds that trained": seeds, **when(comparison.rows)}
    peak = whole_run_peak(comparison.rows)
    return facts if math.isnan(peak) else {**facts, "most memory held_bytes": peak}


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a nested mapping, named by their path, in words."""
    for key, value in facts.items():
        name = f"{above}{str(key).removesuffix('_bytes').replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        else:
            yield name, _fact(str(key), value)


def _fact(key: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        return quantity(value, "bytes") if key.endswith("bytes") else plain(value)
    if isinstance(value, list | tuple):
        return ", ".join(_fact(key, item) for item in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
