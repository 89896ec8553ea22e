"""The page of the recipe study: its table, and a figure of the rows' mass over the training.

The same rows give the same bytes, so a page under version control changes only with its rows.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigmoid_attention.lab.figure import COLOURS, OTHERS, panels, styled, svg
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.setting import SETTINGS, RecipeSetting
from sigmoid_attention.studies.recipe.standing import Standing, report
from sigmoid_attention.studies.recipe.unit import COURSE
from sigmoid_attention.training.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In a document, only the text between these markers is generated.
BEGIN, END = "<!-- recipe {} -->", "<!-- /recipe {} -->"
MASS = "attention_mass"

# Values by arm, layer and step.
Curves = Mapping[str, Mapping[int, Mapping[int, float]]]


def markers(name: str) -> tuple[str, str]:
    """The markers of a setting's part of a document."""
    return BEGIN.format(name), END.format(name)


def publish(
    name: str, setting: RecipeSetting, store: Store, ranking: list[Standing], document: Path
) -> Path:
    """Write the table and the figure of the setting ``name`` between its markers.

    Raises:
        ValueError: the document does not exist or has no markers.
        OSError: a file could not be written.
    """
    folder = document.with_suffix("")
    figure = f"{name}.svg"
    split_at_markers(document, *markers(name))
    write_whole(folder / figure, svg(draw(store, ranking)))
    picture = (
        f"![Held-out loss, and the mean mass of a row in each layer, over the training of the "
        f"first seed]({folder.name}/{figure})"
    )
    text = f"{report(ranking, setting)}\n\n{picture}"
    return publish_text(name, setting, text, document)


def publish_text(name: str, setting: RecipeSetting, text: str, document: Path) -> Path:
    """Write a text with the command that made it between the markers of the setting ``name``."""
    before, after = split_at_markers(document, *markers(name))
    note = f"This table is made by `{command(name, setting)}`; do not edit it by hand."
    write_whole(document, f"{before}\n{note}\n\n{text}\n{after}".encode())
    return document


def command(name: str, setting: RecipeSetting) -> str:
    """The command that makes the rows of a setting, with what differs from the named one."""
    words = [f"sigmoid-attention recipe --setting {name}"]
    for field in ("candidates", "seeds", "learning_rates"):
        chosen = getattr(setting, field)
        if chosen != getattr(SETTINGS[name], field):
            words.append(f"--{field.replace('_', '-')} {' '.join(map(str, chosen))}")
    return " ".join(words)


def draw(store: Store, ranking: list[Standing]) -> "Figure":
    """Held-out loss over the training, and the mean row mass of each sigmoid candidate's layers."""
    arms = {f"{standing.candidate} @ {standing.lr:g}": standing.candidate for standing in ranking}
    rows = [row for row in store.rows().to_pylist() if row["arm"] in arms]
    seed = min(row["seed"] for row in rows)
    course, mass = (_curves(rows, metric, seed) for metric in (COURSE, MASS))
    sigmoids = [arm for arm, name in arms.items() if name.startswith("sigmoid") and arm in mass]
    figure, (first, *others) = panels(1 + len(sigmoids))
    palette = dict(zip(arms, (COLOURS["softmax"], COLOURS["sigmoid"], *OTHERS), strict=False))
    with styled():
        for arm, layers in course.items():
            first.plot(*_points(layers[-1]), color=palette.get(arm), label=arms[arm])
        first.set(xlabel="step", ylabel="bits per byte, held out")
        first.legend()
        top = max(max(layer.values()) for arm in sigmoids for layer in mass[arm].values())
        low = min(min(layer.values()) for arm in sigmoids for layer in mass[arm].values())
        for ax, arm in zip(others, sigmoids, strict=True):
            _masses(ax, mass[arm], arms[arm], (low, top))
    return figure


def _masses(
    ax: "Axes", layers: Mapping[int, Mapping[int, float]], title: str, limits: tuple[float, float]
) -> None:
    for number, layer in sorted(layers.items()):
        ax.plot(*_points(layer), label=f"layer {number}")
    ax.set_yscale("log")
    ax.set_ylim(limits[0] / 1.2, limits[1] * 1.2)
    ax.set(title=title, xlabel="step", ylabel="mean mass of a row")
    ax.legend()


def _curves(rows: list[dict], metric: str, seed: int) -> Curves:
    """Values by arm, layer and step."""
    curves: dict = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["metric"] == metric and row["seed"] == seed:
            curves[row["arm"]][row["layer"]][row["step"]] = row["value"]
    return curves


def _points(by_step: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(by_step)
    return np.array(steps), np.array([by_step[step] for step in steps])
