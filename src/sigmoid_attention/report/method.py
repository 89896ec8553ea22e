"""The report's last section: by which rule, from what, on which machine, and how to repeat it."""

import json
import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from sigmoid_attention.report.format import plain, quantity
from sigmoid_attention.report.measured import Measured
from sigmoid_attention.studies.results import Comparison
from sigmoid_attention.studies.summary import whole_run_peak

LIMITS = (
    "Both arms share every setting, the learning rate among them. An arm that would do better "
    "with another is not given it.",
    "A seed changes the initial weights and the order of the data, never the text itself. The "
    "intervals say what other seeds would give on this text, not what other texts would.",
    "A gap at this size and this many steps may close or open in larger and longer training.",
    "Held-out text comes from the same source as the training text.",
    "Times and memory are those of this machine and these versions. Memory on a CPU is that of "
    "tensors: what a fused operator of either arm works in meanwhile is not seen.",
)


def method(comparison: Comparison, measured: Measured) -> str:
    """The section's HTML: rule, limits and command as prose, then the facts as lists."""
    setting = dict(comparison.setting)
    command = setting.pop("command", None)
    parts = {name: part for name, part in setting.items() if isinstance(part, Mapping)}
    again = (
        f"<pre><code>{_breakable(str(command))}</code></pre>"
        if command
        else '<p class="absent">The command was not recorded.</p>'
    )
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS)
    run = {name: value for name, value in setting.items() if name not in parts}
    facts = {
        "Run": {**run, **_finished(comparison, measured)},
        "Data": comparison.provenance,
        "Machine": comparison.machine,
        "Versions": comparison.versions,
    }
    every = f'<details><summary>Every setting</summary><div class="facts">{_lists(parts)}</div>'
    return f"""<div class="prose">
<h3>The rule behind the verdict</h3>
<p>{escape(comparison.verdict.rule)}</p>
<h3>What this cannot tell</h3>
<ul>{limits}</ul>
<h3>To make it again</h3>
{again}
</div>
<div class="facts">
{_lists(facts)}
</div>
{every + "</details>" if parts else ""}"""


def _breakable(command: str) -> str:
    """A command that a narrow screen breaks between its words, never inside `--option`."""
    return " ".join(f"<span>{escape(word)}</span>" for word in command.split(" "))


def _finished(comparison: Comparison, measured: Measured) -> dict[str, Any]:
    """What the rows themselves tell about the run."""
    seeds = measured.seeds("train_loss") or measured.seeds("validation_bits_per_byte")
    found: dict[str, Any] = {"seeds that trained": seeds}
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
