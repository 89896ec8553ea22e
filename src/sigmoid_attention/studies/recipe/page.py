"""Writes the tables and figures of the recipe study into a page.

The same rows give the same bytes, so a page under version control changes only with its rows.
"""

from pathlib import Path

from sigmoid_attention.lab.figure import svg
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.figure import draw
from sigmoid_attention.studies.recipe.setting import SETTINGS, RecipeSetting
from sigmoid_attention.studies.recipe.standing import Standing, report
from sigmoid_attention.training.files import write_whole

# In a document, only the text between these markers is generated.
BEGIN, END = "<!-- recipe {} -->", "<!-- /recipe {} -->"


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
    rows = [row for row in store.rows().to_pylist() if row["seed"] in setting.seeds]
    write_whole(folder / figure, svg(draw(rows, ranking)))
    picture = (
        f"![Held-out loss during training, by length and by place in the window; copying; the "
        f"share of the logits' variance in the row means; the sum of a row's weights]"
        f"({folder.name}/{figure})"
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
