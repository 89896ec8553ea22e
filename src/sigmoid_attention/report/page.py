"""The report: one HTML file that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.report.chart import marker
from sigmoid_attention.report.figures import Figure, figures
from sigmoid_attention.report.measured import Measured
from sigmoid_attention.report.method import breakable, commits, method, when
from sigmoid_attention.report.table import fused_table, no_gain, summary_table
from sigmoid_attention.report.written import texts
from sigmoid_attention.studies.compare.results import Advice, Comparison, Fusion
from sigmoid_attention.training.files import write_whole

# The browser itself then refuses whatever is not in the file.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NUMBERS = """<p class="intro">A difference is sigmoid − softmax, a ratio sigmoid ÷ softmax. Each is
paired, by seed or by round, and has its 95% interval below it. Times are medians; their ratio is
the median over pairs, which may differ a little from the ratio of the two medians. An interval that
excludes 0 (for a ratio: 1) is hard to explain by chance alone. A small difference counts as none:
<a href="#method">how a question is judged</a>.</p>"""


def render(comparison: Comparison, path: str | Path) -> None:
    """Write the report of a comparison to `path`: one HTML file without scripts or downloads.

    It opens with the verdict and what to do next, then come the summary, the figures, texts of the
    models, and how all of it was measured. What was not measured is said in words. The same
    comparison gives the same bytes.

    Raises:
        OSError: the file cannot be written; what was there before stays.

    Example:
        >>> import tempfile
        >>> from sigmoid_attention.lab.rows import ROW_SCHEMA
        >>> from sigmoid_attention.studies.compare.results import Verdict
        >>> verdict = Verdict("Nothing to compare", "No run has finished.", ("It needs two runs.",))
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
    shown = figures(measured)
    drawn = "\n".join(map(_figure, shown))
    sections = {
        "next": ("What to do next", _advice(comparison.advice)),
        "numbers": ("The numbers", f"{NUMBERS}\n{summary_table(comparison.summary)}"),
        "pictures": ("The pictures", f"{_legend()}\n{drawn}"),
        "texts": ("What the models write", texts(measured)),
        "fused": ("What the fused operator gains", _fused(comparison.fusion)),
        "method": ("How this was measured", method(comparison, measured)),
    }
    sections = {name: (title, body) for name, (title, body) in sections.items() if body}
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
<p class="kicker">{_facts(comparison)}</p>
{_contents({name: title for name, (title, _) in sections.items()}, shown)}
</header>
<main>
{"".join(_section(name, title, body) for name, (title, body) in sections.items())}</main>
</body>
</html>
"""


def _section(name: str, title: str, body: str) -> str:
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{body}\n</section>\n'


def _facts(comparison: Comparison) -> str:
    """When, how long, by which source, and where the rows are."""
    told = when(comparison.rows)
    facts = []
    if told:
        facts += [f"Finished {told['finished']}", f"took {told['duration']}"]
    if commit := commits(comparison.rows):
        facts.append(f"commit {escape(commit)}")
    if comparison.path:
        facts.append(f'<a href="#rows">rows in {escape(comparison.path)}</a>')
    return " · ".join(facts)


def _contents(titles: Mapping[str, str], shown: Sequence[Figure]) -> str:
    """The table of contents: the sections, and in a line of their own the figures."""
    links = {name: escape(title) for name, title in titles.items()}
    figures = {figure.name: escape(figure.title) for figure in shown}
    sections, pictures = (
        "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in part.items())
        for part in (links, figures)
    )
    return (
        f'<nav aria-label="Contents">\n<ul class="contents">{sections}</ul>\n'
        f'<ul class="contents below" aria-label="Pictures">{pictures}</ul>\n</nav>'
    )


def _advice(advice: Sequence[Advice]) -> str:
    items = "".join(
        f"<li>{escape(item.words)}"
        + (f"<pre><code>{breakable(item.command)}</code></pre>" if item.command else "")
        + "</li>"
        for item in advice
    )
    return f'<ol class="advice">{items}</ol>' if items else ""


def _fused(fusion: Fusion | None) -> str:
    """What computed sigmoid attention, and what its being fused gains or why that is not told."""
    if fusion is None:
        return ""
    if not fusion.gains:
        return f'<p class="absent">Fused against unfused: {escape(no_gain(fusion))}.</p>'
    return (
        f'<p class="intro">Sigmoid attention ran in {escape(fusion.operator)}. Unfused is what a '
        "machine without it would run: the definition in PyTorch, in tiles where the scores are "
        "many. It took turns with the other two. No verdict depends on it.</p>\n"
        f"{fused_table(fusion.gains)}"
    )


def _figure(figure: Figure) -> str:
    absent = "".join(f'<p class="absent">{escape(note)}</p>' for note in figure.absent)
    head = f'<h3 id="{figure.name}">{escape(figure.title)}</h3>'
    if not figure.panels:
        return f'<div class="figure">\n<div class="words">{head}{absent}</div>\n</div>'
    panels = "\n".join(panel.svg() for panel in figure.panels)
    caption = "".join(f"<p>{escape(part)}</p>" for part in figure.caption.split("\n"))
    return (
        f'<figure class="figure" aria-labelledby="{figure.name}">\n'
        f'<figcaption class="words">{head}{caption}{absent}</figcaption>\n'
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
        "turns). Thin lines and small marks are single seeds. Bars with caps are 95% "
        "intervals.</p>\n"
        f'<ul class="legend">{keys}</ul>'
    )
