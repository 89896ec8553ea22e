"""Renders the report: one HTML file without scripts, image files or downloads."""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from sigmoid_attention.lab.theme import style_sheet
from sigmoid_attention.report.chart import ARM_SERIES, key_svg
from sigmoid_attention.report.comparison_values import ComparisonValues
from sigmoid_attention.report.figures import figures
from sigmoid_attention.report.html import from_template
from sigmoid_attention.report.method import commits, method, when
from sigmoid_attention.report.table import fused_table, no_gain, summary_table
from sigmoid_attention.report.written import texts
from sigmoid_attention.studies.compare.results import Comparison, Fusion
from sigmoid_attention.training.files import write_whole


class Section(NamedTuple):
    """A section of the page; `name` is its anchor."""

    name: str
    title: str
    body: Markup


def render(comparison: Comparison, path: str | Path) -> None:
    """Write the report of a comparison to `path`: one HTML file without scripts or downloads.

    It begins with the verdict and the next steps. The summary, the figures, texts of the models
    and the method follow. Missing values are replaced by a sentence. The same comparison gives the
    same bytes.

    Raises:
        OSError: the file cannot be written; an older file stays.

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
    measured = ComparisonValues(comparison)
    drawn = figures(measured)
    keys = {arm: Markup(key_svg(series)) for arm, series in ARM_SERIES.items()}
    summary = from_template("numbers.html") + summary_table(comparison.summary)
    advice = from_template("advice.html", advice=comparison.advice) if comparison.advice else ""
    sections = (
        Section("next", "What to do next", Markup(advice)),
        Section("numbers", "The numbers", summary),
        Section(
            "pictures", "The pictures", from_template("figures.html", figures=drawn, keys=keys)
        ),
        Section("texts", "What the models write", texts(measured)),
        Section("fused", "What the fused operator gains", _fused(comparison.fusion)),
        Section("method", "How this was measured", method(comparison, measured)),
    )
    style = files("sigmoid_attention.report").joinpath("style.css").read_text(encoding="utf-8")
    return from_template(
        "page.html",
        style=Markup(style_sheet() + style),
        verdict=comparison.verdict,
        facts=_facts(comparison),
        path=comparison.path,
        sections=[section for section in sections if section.body],
        figures=drawn,
    )


def _facts(comparison: Comparison) -> list[str]:
    """The end and the duration of the comparison, and the commit of its source."""
    times = when(comparison.rows)
    facts = [f"Finished {times['finished']}", f"took {times['duration']}"] if times else []
    commit = commits(comparison.rows)
    return [*facts, f"commit {commit}"] if commit else facts


def _fused(fusion: Fusion | None) -> Markup:
    """The operator that computed sigmoid attention, and its gain by fusion or why it is unknown."""
    if fusion is None:
        return Markup()
    if not fusion.gains:
        reason = no_gain(fusion)
        return Markup('<p class="absent">Fused against unfused: {}.</p>').format(reason)
    introduction = Markup(
        '<p class="intro">Sigmoid attention ran in {}. Unfused is what a machine without it would '
        "run: the definition in PyTorch, in tiles where the scores are many. It alternated with "
        "the other two. No verdict depends on it.</p>\n"
    )
    return introduction.format(fusion.operator) + fused_table(fusion.gains)
