"""The report's last section: by which rule, from what, on which machine, and how to repeat it."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import pyarrow as pa

from sigmoid_attention.report.format import plain, quantity
from sigmoid_attention.report.measured import Measured
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


def method(comparison: Comparison, measured: Measured) -> str:
    """The section's HTML: rules, limits, rows and command as prose, then the facts as lists."""
    setting = dict(comparison.setting)
    command = setting.pop("command", None)
    parts = {name: part for name, part in setting.items() if isinstance(part, Mapping)}
    again = (
        f"<pre><code>{breakable(str(command))}</code></pre>"
        if command
        else '<p class="absent">The command was not recorded.</p>'
    )
    text, commit = setting.get("text", {}), commits(comparison.rows)
    rates = ONE_RATE if text.get("lr") == text.get("softmax_lr") else TWO_RATES
    run = {name: value for name, value in setting.items() if name not in parts}
    facts = {
        "Run": {**run, **_finished(comparison, measured)},
        "Data": comparison.provenance,
        "Machine": comparison.machine,
        "Versions": comparison.versions | ({"commit": commit} if commit else {}),
    }
    every = f'<details><summary>Every setting</summary><div class="facts">{_lists(parts)}</div>'
    return f"""<div class="prose">
<h3>How a question is judged</h3>
<ul>{_items(comparison.verdict.rule)}</ul>
<h3>Which headline is taken</h3>
<p>The first that holds. Cost is said beside it and never weighed against quality.</p>
<ol>{_items(comparison.verdict.order)}</ol>
<h3>What this cannot tell</h3>
<ul>{_items((rates, *LIMITS))}</ul>
<h3 id="rows">The rows</h3>
{_rows(comparison)}
<h3>To make it again</h3>
{again}
</div>
<div class="facts">
{_lists(facts)}
</div>
{every + "</details>" if parts else ""}"""


def when(rows: pa.Table) -> dict[str, str]:
    """When the first unit began, when the last ended (UTC), and how long all took, in words.

    Breaks between the units do not count. Empty where the rows do not say.
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
    """The commits that the rows were measured with, several if the source changed meanwhile."""
    stamps = [json.loads(text) for text in rows["versions"].unique().to_pylist() if text]
    return ", ".join(sorted({stamp["commit"] for stamp in stamps if "commit" in stamp}))


def _rows(comparison: Comparison) -> str:
    if not comparison.path:
        return '<p class="absent">The rows were not kept.</p>'
    read = f"import pandas; rows = pandas.read_parquet({comparison.path!r})"
    return (
        "<p>Every number of this page is computed from the rows in "
        f'<a href="rows.parquet">{escape(comparison.path)}</a>: one value each, with arm, seed, '
        "metric, step, length and layer. To read them:</p>\n"
        f"<pre><code>{escape(read)}</code></pre>"
    )


def _items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)


def breakable(command: str) -> str:
    """A command that a narrow screen breaks between its words, never inside `--option`."""
    return " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))


def _finished(comparison: Comparison, measured: Measured) -> dict[str, Any]:
    """What the rows themselves tell about the run."""
    seeds = measured.seeds("train_loss") or measured.seeds("validation_bits_per_byte")
    found: dict[str, Any] = {"seeds that trained": seeds, **when(comparison.rows)}
    peak = whole_run_peak(comparison.rows)
    return found if math.isnan(peak) else {**found, "most memory held_bytes": peak}


def _lists(facts: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(_list(title, part) for title, part in facts.items())


def _list(title: str, facts: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _flat(facts)
    )
    body = f"<dl>{lines}</dl>" if lines else '<p class="absent">Not recorded.</p>'
    return f"<section><h3>{escape(title.capitalize())}</h3>{body}</section>"


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A nested mapping's leaves, named by their path, in words."""
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
