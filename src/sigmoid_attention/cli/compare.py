"""`sigmoid-attention compare`: the study, a table in the terminal, and the report."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.study_options import CompareOptions
from sigmoid_attention.report.format import quantity
from sigmoid_attention.report.page import render
from sigmoid_attention.report.table import (
    FUSED_HEADINGS,
    HEADINGS,
    Cells,
    cells,
    gain_cells,
    no_gain,
)
from sigmoid_attention.studies.compare.results import Comparison, Fusion
from sigmoid_attention.studies.compare.run import compare as run_comparison
from sigmoid_attention.studies.compare.settings import compare_setting
from sigmoid_attention.studies.compare.standing import gain_reading, reading
from sigmoid_attention.studies.compare.summary import whole_run_peak
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.files import refuse_other_kinds
from sigmoid_attention.training.terminal import tell, terminal

REPORT = "report.html"
WIDTH_OF_A_FILE = 144


def compare(options: CompareOptions) -> None:
    """Run or continue a comparison and show its results."""
    setting = compare_setting(
        options.preset,
        data=options.data,
        seeds=options.seeds,
        steps=options.steps,
        # "auto" is resolved here, so that a run started on a GPU cannot continue on a CPU.
        device=str(resolve_device(options.device)),
        lr=options.lr,
        softmax_lr=options.softmax_lr,
        recipe=options.recipe,
        position=options.position,
    )
    refuse_other_kinds(options.out, files=(REPORT,))
    errors = terminal(errors=True)
    if setting.preset == "medium" and setting.device == "cpu":
        errors.print("the preset medium is made for a GPU; on a CPU it takes many hours")
    comparison = run_comparison(setting, options.out, resume=options.resume, console=errors)
    report = options.out / REPORT
    render(comparison, report)
    if options.json:
        print_json(as_json(comparison, str(report)))
        return
    show(comparison, terminal())
    tell(f"report: {report}")
    tell(f"rows:   {comparison.path}")


def as_json(comparison: Comparison, report: str) -> dict[str, Any]:
    """The content that `show` prints, for JSON."""
    return {
        "headline": comparison.verdict.headline,
        "paragraph": comparison.verdict.paragraph,
        "summary": [asdict(row) | reading(row)._asdict() for row in comparison.summary],
        "fusion": asdict(comparison.fusion) if comparison.fusion else None,
        "advice": [asdict(advice) for advice in comparison.advice],
        "report": report,
        "rows": comparison.path,
    }


def show(comparison: Comparison, console: Console) -> None:
    """Print the summary as a table, the verdict, and the next steps."""
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS[:2]:
        table.add_column(heading.lower())
    for heading in HEADINGS[2:]:
        table.add_column(heading.lower(), justify="right")
    for row in comparison.summary:
        table.add_row(row.label, reading(row).words, *_numbers(cells(row)))
    if comparison.fusion and comparison.fusion.gains:
        _add_gains(table, comparison.fusion)
    console.print(table)
    console.print(
        "\nTimes are medians. A ratio of times is the median over pairs of neighbouring rounds, "
        "so it may differ a little from that of the two medians.",
        highlight=False,
    )
    if comparison.fusion:
        _print_operator(comparison.fusion, console)
    console.print()
    console.print(comparison.verdict.headline, style="bold", highlight=False, markup=False)
    console.print(comparison.verdict.paragraph, highlight=False, markup=False)
    for number, advice in enumerate(comparison.advice, 1):
        if number == 1:
            console.print("\nWhat to do next:", highlight=False)
        console.print(f"{number}. {advice.words}", highlight=False, markup=False)
        if advice.command:
            # Without line breaks, so that it can be copied.
            console.print(f"   {advice.command}", highlight=False, markup=False, soft_wrap=True)
    peak = quantity(whole_run_peak(comparison.rows), "bytes")
    console.print(f"\nThe run held at most {peak} of memory.\n", highlight=False)


def _numbers(columns: Cells) -> tuple[str, str, str]:
    softmax, sigmoid, apart, around = columns
    return softmax, sigmoid, f"{apart} ({around})" if around else apart


def _add_gains(table: Table, fusion: Fusion) -> None:
    table.add_row()
    headings = ("sigmoid, fused or not", *map(str.lower, FUSED_HEADINGS[1:]))
    table.add_row(*headings, style="table.header")
    for gain in fusion.gains:
        table.add_row(gain.label, gain_reading(gain).words, *_numbers(gain_cells(gain)))


def _print_operator(fusion: Fusion, console: Console) -> None:
    sentence = (
        f"Sigmoid attention ran in {fusion.operator}."
        if fusion.gains
        else f"Training step, fused against unfused: {no_gain(fusion)}."
    )
    console.print(f"\n{sentence}", highlight=False, markup=False)
