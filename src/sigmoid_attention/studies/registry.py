"""The list of all studies: those that `studies run` runs, and those with a command of their own.

Imports here are light: the module of a study is imported when the study is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sigmoid_attention.attention import arguments
from sigmoid_attention.training.files import read_json

if TYPE_CHECKING:
    from sigmoid_attention.lab.study import Study

# Studies of published claims, in the order of the report. A group is a folder of `studies`. Each
# name is a module in it that defines STUDY, except for the names in SHARED_MODULES.
CLAIM_STUDIES = {
    "mixtures": (
        "nguyen2024_table",
        "nguyen2024_figure",
        "paper_protocol",
        "pseudo_true",
        "yan2025_table",
        "yan2025_figures",
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
        "attention_row",
        "identifiability",
    ),
    "theory": (
        "regularity_radius",
        "regularity_crowd",
        "regularity_length",
        "length_scaling",
        "attention_cost",
        "regularity_depth",
        "regularity_training",
    ),
}
# Studies that share a module of their group, which defines them in STUDIES.
SHARED_MODULES: dict[str, str] = dict.fromkeys(
    (
        "nguyen2024_table",
        "nguyen2024_figure",
        "yan2025_table",
        "yan2025_figures",
        "other_gates",
        "extra_experts",
        "microscope",
    ),
    "rate_tables",
)


@dataclass(frozen=True)
class CommandStudy:
    """A study with a command of its own, which runs, continues and reports it.

    ``rule`` is the module whose docstring states the rule of the answer. A folder of the study is
    recognised by ``subfolder/setting.json`` with the key ``setting_key``, which no other study
    writes; a complete study also has ``subfolder/result``.
    """

    name: str
    question: str
    rule: str
    arguments: str
    setting_key: str
    result: str = "rows.parquet"
    subfolder: str = ""

    @property
    def command(self) -> str:
        return f"sigmoid-attention {self.name}{self.arguments and f' {self.arguments}'}"

    def state(self, out: Path) -> str:
        """ "complete", "begun" or "none": how much of the study the folder ``out`` holds.

        Raises ``Damaged`` if the folder's setting.json cannot be read.
        """
        folder = out / self.subfolder
        setting = folder / "setting.json"
        if not setting.exists() or self.setting_key not in read_json(setting):
            return "none"
        return "complete" if (folder / self.result).exists() else "begun"


COMMAND_STUDIES = (
    CommandStudy(
        name="compare",
        question="Should I switch to sigmoid attention, and what does it cost?",
        rule="sigmoid_attention.studies.compare.verdict",
        arguments="",
        setting_key="measured_with",
    ),
    CommandStudy(
        name="recipe",
        question="Which position, norms and bias train a sigmoid decoder best?",
        rule="sigmoid_attention.studies.recipe.standing",
        arguments="",
        setting_key="ffn_dim",
    ),
    CommandStudy(
        name="routing",
        question="Does sigmoid routing train a mixture of experts better than softmax routing?",
        rule="sigmoid_attention.studies.routing.findings",
        arguments="",
        setting_key="pairs",
    ),
    CommandStudy(
        name="convert",
        question="How close to its parent is a pretrained model after conversion to sigmoid?",
        rule="sigmoid_attention.studies.conversion.evaluate",
        arguments="MODEL --out OUT",
        setting_key="layer_steps",
        result="model",
    ),
    CommandStudy(
        name="universality",
        question="How much larger is the universality proof's transformer than a trained one?",
        rule="sigmoid_attention.studies.theory.universality",
        arguments="all --trained",
        setting_key="steepnesses",
        subfolder="trained",
    ),
)


def claim_names(group: str | None = None) -> list[str]:
    """The installed studies of published claims, or those of one group."""
    if group is not None:
        arguments.one_of("group", group, CLAIM_STUDIES, f"one of {', '.join(CLAIM_STUDIES)}")
    groups = CLAIM_STUDIES if group is None else {group: CLAIM_STUDIES[group]}
    return [name for group, names in groups.items() for name in names if _is_there(group, name)]


def claim_study(name: str) -> "Study":
    """The study of a published claim.

    Raises:
        TypeError: the name is no string.
        ValueError: no study has this name, or the study has a command of its own.

    Example:
        >>> claim_study("nguyen2024_table").source[:18]
        'Nguyen et al. 2024'
        >>> claim_study("compare")
        Traceback (most recent call last):
        ...
        ValueError: name: compare has a command of its own: sigmoid-attention compare
    """
    for study in COMMAND_STUDIES:
        if name == study.name:
            raise ValueError(f"name: {name} has a command of its own: {study.command}")
    names = claim_names()
    arguments.one_of("name", name, names, f"one of {', '.join(names)}")
    group = next(group for group in CLAIM_STUDIES if name in claim_names(group))
    module = import_module(_module(group, name))
    return module.STUDIES[name] if name in SHARED_MODULES else module.STUDY


def select_claims(names_or_groups: Sequence[str]) -> "list[Study]":
    """Studies of published claims in the order of the report, each once; all studies for [].

    Raises:
        ValueError: a name is neither such a study nor a group.

    Example:
        >>> [study.name for study in select_claims(["theory", "regularity_depth"])][:2]
        ['regularity_radius', 'regularity_crowd']
    """
    selected: set[str] = set()
    for name in names_or_groups:
        selected |= set(claim_names(name)) if name in CLAIM_STUDIES else {claim_study(name).name}
    return [claim_study(name) for name in claim_names() if not names_or_groups or name in selected]


def _is_there(group: str, name: str) -> bool:
    return find_spec(_module(group, name)) is not None


def _module(group: str, name: str) -> str:
    return f"sigmoid_attention.studies.{group}.{SHARED_MODULES.get(name, name)}"
