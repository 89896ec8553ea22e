"""`sigmoid-attention compare`: the study, a table in the terminal, and the report."""

from rich.console import Console
from rich.table import Table

from sigmoid_attention.cli.arguments import Compare
from sigmoid_attention.report import render
from sigmoid_attention.report.format import difference, quantity
from sigmoid_attention.report.table import FUSED_HEADINGS, gain_reading, no_gain, reading
from sigmoid_attention.studies.compare import compare as run_comparison
from sigmoid_attention.studies.environment import resolve_device
from sigmoid_attention.studies.results import Comparison, Fusion
from sigmoid_attention.studies.setting import compare_setting
from sigmoid_attention.studies.store import ROWS
from sigmoid_attention.studies.summary import whole_run_peak

REPORT = "report.html"
WIDTH_OF_A_FILE = 124


def compare(asked: Compare) -> None:
    """Run or continue a comparison and show what came out of it."""
    setting = compare_setting(
        asked.preset,
        data=asked.data,
        seeds=asked.seeds,
        steps=asked.steps,
        # What "auto" found belongs to the setting: a run begun on a GPU is not continued without.
        device=str(resolve_device(asked.device)),
        lr=asked.lr,
        softmax_lr=asked.softmax_lr,
        recipe=asked.recipe,
        position=asked.position,
    )
    comparison = run_comparison(
        setting, asked.out, resume=asked.resume, console=Console(stderr=True)
    )
    report = asked.out / REPORT
    render(comparison, report)
    show(comparison, Console())
    print(f"report: {report}")
    print(f"rows:   {asked.out / ROWS}")


def show(comparison: Comparison, console: Console) -> None:
    """Print the summary as a table, and the verdict."""
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("softmax", "sigmoid", "sigmoid against softmax"):
        table.add_column(heading, justify="right")
    table.add_column("reading")
    for row in comparison.summary:
        apart, around = difference(row.difference, row.unit, row.kind)
        table.add_row(
            row.label,
            quantity(row.softmax.mean, row.unit),
            quantity(row.sigmoid.mean, row.unit),
            f"{apart} ({around})" if around else apart,
            reading(row)[1],
        )
    if comparison.fusion and comparison.fusion.gains:
        _add_gains(table, comparison.fusion)
    console.print(table)
    if comparison.fusion:
        _say_operator(comparison.fusion, console)
    console.print()
    console.print(comparison.verdict.headline, style="bold", highlight=False)
    console.print(comparison.verdict.paragraph, highlight=False)
    peak = quantity(whole_run_peak(comparison.rows), "bytes")
    console.print(f"The run held at most {peak} of memory.\n", highlight=False)


def _add_gains(table: Table, fusion: Fusion) -> None:
    table.add_row()
    table.add_row(*(heading.lower() for heading in FUSED_HEADINGS), style="table.header")
    for gain in fusion.gains:
        ratio, around = difference(gain.ratio, "seconds", "ratio")
        table.add_row(
            gain.label,
            quantity(gain.unfused.mean, "seconds"),
            quantity(gain.fused.mean, "seconds"),
            f"{ratio} ({around})" if around else ratio,
            gain_reading(gain)[0],
        )


def _say_operator(fusion: Fusion, console: Console) -> None:
    said = (
        f"Sigmoid attention ran in {fusion.operator}."
        if fusion.gains
        else f"Training step, fused against unfused: {no_gain(fusion)}."
    )
    console.print(f"\n{said}", highlight=False)
