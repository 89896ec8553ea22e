"""The report: one HTML file that needs nothing but itself."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..studies.results import SIGMOID, SOFTMAX, Comparison
from ..training.files import write_whole
from .chart import marker
from .figures import Figure, figures
from .format import plain, quantity
from .measured import Measured
from .table import summary_table

# The browser itself then refuses whatever is not in the file.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

LIMITS = (
    "Both arms share every setting, the learning rate among them. An arm that would do better "
    "with another is not given it.",
    "A seed changes the initial weights and the order of the data, never the text itself. The "
    "intervals say what other seeds would give on this text, not what other texts would.",
    "A gap at this size and this many steps may close or open in larger and longer training.",
    "Held-out text comes from the same source as the training text.",
    "Times and memory are those of this machine and these versions.",
)


def render(comparison: Comparison, path: str | Path) -> None:
    """Write the report of a comparison to `path`: one HTML file without scripts or downloads.

    It opens with the verdict, then the summary, the figures, and how all of it was measured. What
    was not measured is said in words. The same comparison gives the same bytes.

    Raises:
        OSError: the file cannot be written; what was there before stays.

    Example:
        >>> import tempfile
        >>> from sigmoid_attention.studies.results import ROW_SCHEMA, Verdict
        >>> verdict = Verdict("Nothing to compare", "No run has finished.", "needs two runs")
        >>> empty = Comparison(ROW_SCHEMA.empty_table(), [], verdict, {}, {}, {}, {})
        >>> report = Path(tempfile.mkdtemp()) / "report.html"
        >>> render(empty, report)
        >>> "<h1>Nothing to compare</h1>" in report.read_text()
        True
    """
    write_whole(Path(path), page(comparison).encode())


def page(comparison: Comparison) -> str:
    """The report's HTML."""
    measured = Measured(comparison)
    verdict = comparison.verdict
    style = files("sigmoid_attention.report").joinpath("style.css").read_text(encoding="utf-8")
    drawn = "\n".join(_figure(figure) for figure in figures(measured))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Sigmoid or softmax attention: {escape(verdict.headline)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kicker">Sigmoid or softmax attention: should I switch, and what does it cost?</p>
<h1>{escape(verdict.headline)}</h1>
<p class="lead">{escape(verdict.paragraph)}</p>
</header>
<main>
<section aria-labelledby="numbers">
<h2 id="numbers">The numbers</h2>
<p class="intro">Differences are sigmoid − softmax, ratios sigmoid ÷ softmax, both paired (by seed,
or by turn where times were taken), with 95% intervals. Where an interval excludes 0 (for a ratio:
1), chance alone is a poor explanation.</p>
{summary_table(comparison.summary)}
</section>
<section aria-labelledby="pictures">
<h2 id="pictures">The pictures</h2>
{_legend()}
{drawn}
</section>
<section aria-labelledby="method">
<h2 id="method">How this was measured</h2>
{_method(comparison, measured)}
</section>
</main>
</body>
</html>
"""


def _figure(figure: Figure) -> str:
    absent = "".join(f'<p class="absent">{escape(note)}</p>' for note in figure.absent)
    head = f'<h3 id="{figure.name}">{escape(figure.title)}</h3>'
    if not figure.panels:
        return f'<div class="figure">\n<div class="words">{head}{absent}</div>\n</div>'
    panels = "\n".join(panel.svg() for panel in figure.panels)
    return (
        f'<figure class="figure" aria-labelledby="{figure.name}">\n'
        f'<figcaption class="words">{head}<p>{escape(figure.caption)}</p>{absent}</figcaption>\n'
        f'<div class="panels">\n{panels}\n</div>\n</figure>'
    )


def _legend() -> str:
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 44 14" aria-hidden="true">'
        f'<path class="line {arm} mean" d="M0,7H44"/>{marker(22, 7, arm, "mean")}</svg>{arm}</li>'
        for arm in (SOFTMAX, SIGMOID)
    )
    return (
        '<p class="intro">Thick lines and large marks are means over seeds, thin lines and small '
        "marks single seeds, bars with caps 95% intervals.</p>\n"
        f'<ul class="legend">{keys}</ul>'
    )


def _method(comparison: Comparison, measured: Measured) -> str:
    setting = dict(comparison.setting)
    command = setting.pop("command", None)
    seeds = measured.seeds("train_loss") or measured.seeds("validation_bits_per_byte")
    named = f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "none finished"
    again = (
        f"<pre><code>{escape(str(command))}</code></pre>"
        if command
        else '<p class="absent">The command was not recorded.</p>'
    )
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS)
    tables = {
        "Setting": {"seeds that trained": named, **setting},
        "Data": comparison.provenance,
        "Machine": comparison.machine,
        "Versions": comparison.versions,
    }
    facts = "\n".join(_facts(title, facts) for title, facts in tables.items())
    return f"""<div class="prose">
<h3>The rule behind the verdict</h3>
<p>{escape(comparison.verdict.rule)}</p>
<h3>What this cannot tell</h3>
<ul>{limits}</ul>
<h3>To make it again</h3>
{again}
</div>
<div class="facts">
{facts}
</div>"""


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in _flat(facts)
    )
    body = f"<dl>{lines}</dl>" if lines else '<p class="absent">Not recorded.</p>'
    return f"<section><h3>{escape(title)}</h3>{body}</section>"


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
