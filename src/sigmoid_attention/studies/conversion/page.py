"""The page of a conversion, docs/conversion.md: a table of measurements and the curve."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import COLOURS, panels, svg
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.studies.conversion.curve import ConversionCurve, read_curve
from sigmoid_attention.training.files import write_whole
from sigmoid_attention.training.terminal import in_sentences, tell

# In a document, only the text between these markers is generated.
BEGIN, END = "<!-- conversions -->", "<!-- /conversions -->"
STAGES = {
    "parent": "softmax parent",
    "naive": "sigmoid, b = -log(visible keys)",
    "row LSE": "sigmoid, b = -LSE of the row",
    "start": "start: the same with a gain",
    "calibrated": "calibrated, no training",
    "layer by layer": "after stage one",
    "all layers": "stage two",
    "final": "end",
}
_CURVE = {"loss": "held-out loss, nats a token", "hidden_error": "relative error of hidden states"}


def publish(folders: Sequence[Path], document: Path) -> Path:
    """Write the table and the curve of each run between the markers of a document.

    Raises:
        ValueError: a folder has no conversion, or the document does not exist or has no markers.
        OSError: a file could not be written.
    """
    before, after = split_at_markers(document, BEGIN, END)
    folder = document.with_suffix("")
    parts = []
    for run in folders:
        curve = read_curve(run)
        name = f"{run.name}.svg"
        write_whole(folder / name, svg(draw(curve)))
        parts.append(section(curve, f"{folder.name}/{name}"))
    text = "\n".join(parts)
    write_whole(document, f"{before}\n{text}{after}".encode())
    return document


def section(curve: ConversionCurve, figure: str) -> str:
    """One run in Markdown: its setting, the table, the curve."""
    about = curve.described
    setting = " ".join(
        f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {value}"
        for name, value in about["setting"].items()
        if value is not False
    )
    machine = about["machine"]
    data = about["data"]
    made = (
        f"{about['model']['source']}; text: {Path(data['source']).name} {data['version']}, "
        f"{data['heldout_bytes']:,} of {data['bytes']:,} bytes held out "
        f"({data['split']}); {machine['processor']}, {machine['threads']} thread(s), "
        f"{machine.get('accelerator', 'no GPU')}, torch {about['versions']['torch']}; "
        f"{_minutes(curve.seconds)} of training on a machine that did other work too."
    )
    return "\n".join(
        [
            f"### {about['model']['model']}, {kind(about['setting'])}",
            "",
            f"Setting: `{setting}`. {made}",
            "",
            table(curve),
            f"![Curve of the conversion of {about['model']['model']}]({figure})",
            "",
        ]
    )


def kind(setting: dict[str, Any]) -> str:
    """The settings that distinguish runs of one model, in words."""
    repeats = f", repeats {setting['repeats']}" if setting["repeats"] else ""
    mass = ", divided by the mass" if _is_divided(setting) else ""
    return f"{setting['form']}{mass}{repeats}"


def _is_divided(setting: dict[str, Any]) -> bool:
    # Runs of older versions do not have the setting.
    return setting.get("annealed") == "mass"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def table(curve: ConversionCurve) -> str:
    """A Markdown table: a row for each evaluation, a column for each quantity."""
    names = list(dict.fromkeys(name for point in curve.points for name in point.found))
    lines = [
        "| | steps | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    names_of_stages = dict(STAGES)
    if _is_divided(curve.described["setting"]):
        names_of_stages["start"] = "start: divided by the mass"
    for point in curve.points:
        cells = [f"{point.found[name]:.3f}" if name in point.found else "" for name in names]
        lines.append(
            f"| {names_of_stages[point.stage]} | {point.step} | " + " | ".join(cells) + " |"
        )
    return "\n".join([*lines, ""])


def draw(curve: ConversionCurve) -> Figure:
    """The main quantity of every evaluation over the training steps, and again for stage two only.

    The gain of stage two is small compared with stage one, but decides the result.
    """
    name, title = next((n, t) for n, t in _CURVE.items() if n in curve.points[0].found)
    untrained = ("parent", "naive", "row LSE", "start")
    moving = [point for point in curve.points if point.stage not in untrained]
    last = [point for point in moving if point.stage in ("all layers", "final")]
    figure, both = panels(2)
    for axes, points in zip(both, (moving, last), strict=True):
        axes.axhline(
            curve.at("parent").found[name], color=COLOURS[SOFTMAX], linestyle="--", label="parent"
        )
        axes.plot(
            [point.step for point in points],
            [point.found[name] for point in points],
            color=COLOURS[SIGMOID],
            marker="s",
            label="sigmoid",
        )
    both[0].set_xlabel("steps of training, those of single layers first")
    both[1].set_xlabel("those on all layers alone")
    both[0].set_ylabel(title)
    both[0].legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m sigmoid_attention.studies.conversion.page DOCUMENT RUN [RUN ...]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path, help="gets the runs between its markers")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of `sigmoid-attention convert`")
    options = parser.parse_args(arguments)
    tell(str(publish(options.runs, options.document)))


if __name__ == "__main__":
    sys.exit(in_sentences(main))
