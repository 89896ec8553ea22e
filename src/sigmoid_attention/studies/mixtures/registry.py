"""Which studies there are, in the order of the report; each is imported when it is asked for."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from sigmoid_attention.studies.mixtures.study import Study

# A module of this folder each.
NAMES = (
    "p2_table",
    "p2_figure",
    "pseudo_true",
    "p3_table",
    "p3_figures",
    "sibling",
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
)


def names() -> list[str]:
    """The studies that are there."""
    return [name for name in NAMES if find_spec(_module(name))]


def study(name: str) -> Study:
    """The study of this name; ``ValueError`` with the names there are for any other.

    Example:
        >>> study("p2_table").source[:16]
        'arXiv 2405.13997'
    """
    there = names()
    if name not in there:
        raise ValueError(f"name: must be one of {', '.join(there)}, got {name!r}")
    return import_module(_module(name)).STUDY


def chosen(asked: Sequence[str]) -> list[Study]:
    """The studies of these names in the order of the report, each once; all of them for none.

    Raises:
        ValueError: a name that no study has.
    """
    of_name = {name: study(name) for name in dict.fromkeys(asked or names())}
    return sorted(of_name.values(), key=lambda one: NAMES.index(one.name))


def _module(name: str) -> str:
    return f"{__package__}.{name}"
