"""The report: one HTML file that needs nothing but itself."""

from html import escape
from importlib.resources import files
from pathlib import Path

from sigmoid_attention.report.chart import marker
from sigmoid_attention.report.figures import Figure, figures
from sigmoid_attention.report.measured import Measured
from sigmoid_attention.report.method import method
from sigmoid_attention.report.table import summary_table
from sigmoid_attention.studies.results import SIGMOID, SOFTMAX, Comparison, Fusion
from sigmoid_attention.training.files import write_whole

# The browser itself then refuses whatever is not in the file.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


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
        >>> empty = Comparison(ROW_SCHEMA.empty_table(), [], None, verdict, {}, {}, {}, {})
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
1), chance alone is a poor explanation. A ratio of times is the median over turns, not the quotient
of the two columns. The reading follows the rule stated below, by which a
difference within a small margin counts as none.</p>
{summary_table(comparison.summary, comparison.fusion, measured.baseline)}
{_operator(comparison.fusion)}
</section>
<section aria-labelledby="pictures">
<h2 id="pictures">The pictures</h2>
{_legend()}
{drawn}
</section>
<section aria-labelledby="method">
<h2 id="method">How this was measured</h2>
{method(comparison, measured)}
</section>
</main>
</body>
</html>
"""


def _operator(fusion: Fusion | None) -> str:
    """What computed sigmoid attention, below the table whose last group says what that gains."""
    if fusion is None or not fusion.gains:
        return ""
    return (
        f'<p class="intro">Sigmoid attention ran in {escape(fusion.operator)}. Unfused is what it '
        "would run in on a machine without that: the definition in PyTorch, or tiles of it where "
        "the scores are many. It took turns with the other two, and no verdict hangs on it.</p>"
    )


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
        '<p class="intro">Thick lines and large marks are means over seeds (of times: medians over '
        "turns), thin lines and small marks single seeds, bars with caps 95% intervals.</p>\n"
        f'<ul class="legend">{keys}</ul>'
    )
