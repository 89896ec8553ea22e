"""Which studies there are, in the order of the report; each is imported when it is asked for."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from sigmoid_attention.lab.study import Study

# A folder of `studies` each, with a module for every name.
ROOMS = {
    "mixtures": (
        "p2_table",
        "p2_figure",
        "pseudo_true",
        "p3_table",
        "p3_figures",
        "shared_experts",
        "same_truth",
        "other_gates",
        "classification",
        "temperature",
        "extra_experts",
        "global_minimum",
        "sensitivity",
        "collapse",
        "real_data",
        "microscope",
    ),
    "theory": (
        "regularity_radius",
        "regularity_length",
        "regularity_depth",
        "regularity_training",
    ),
}


def names(room: str | None = None) -> list[str]:
    """The studies that are there, or those of a room."""
    rooms = ROOMS if room is None else {room: ROOMS[room]}
    return [name for room, all_of_it in rooms.items() for name in all_of_it if _there(room, name)]


def study(name: str) -> Study:
    """The study of this name; ``ValueError`` with the names there are for any other.

    Example:
        >>> study("p2_table").source[:16]
        'arXiv 2405.13997'
    """
    for room in ROOMS:
        if name in names(room):
            return import_module(_module(room, name)).STUDY
    raise ValueError(f"name must be one of {', '.join(names())}, got {name!r}")


def chosen(asked: Sequence[str]) -> list[Study]:
    """The studies of these names in the order of the report, each once; all of them for none.

    The name of a room stands for all that is in it.

    Raises:
        ValueError: a name that no study has.

    Example:
        >>> [one.name for one in chosen(["theory", "regularity_depth"])][:2]
        ['regularity_radius', 'regularity_length']
    """
    wanted = {
        name for word in asked for name in (names(word) if word in ROOMS else [study(word).name])
    }
    return [study(name) for name in names() if not asked or name in wanted]


def _there(room: str, name: str) -> bool:
    return find_spec(_module(room, name)) is not None


def _module(room: str, name: str) -> str:
    return f"sigmoid_attention.studies.{room}.{name}"
