"""Parses the command line, and replaces field names in error messages by flags."""

import difflib
import functools
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Annotated, Any

import tyro

from sigmoid_attention.cli.model_options import (
    ConvertOptions,
    DiagnoseOptions,
    DoctorOptions,
    GenerateOptions,
    RegularityOptions,
    TrainOptions,
)
from sigmoid_attention.cli.study_options import (
    CompareOptions,
    RatesOptions,
    RecipeOptions,
    RoutingOptions,
    StudiesOptions,
    UniversalityOptions,
)
from sigmoid_attention.studies.registry import COMMAND_STUDIES

PURPOSE = (
    "Trains, compares, converts and examines transformers whose attention weighs each key by a "
    "sigmoid of its own logit, where others take a softmax over all of them."
)
COMPLETION = (
    "Tab completion: --tyro-print-completion bash (or zsh, tcsh) prints a script for your shell; "
    'in bash, eval "$(sigmoid-attention --tyro-print-completion bash)" turns it on.'
)
# Fields that are positional arguments.
POSITIONAL = ("folder", "model", "function", "names")

# The options of each command, in the order of the help.
OPTION_TYPES = (
    CompareOptions,
    TrainOptions,
    GenerateOptions,
    RecipeOptions,
    ConvertOptions,
    RoutingOptions,
    StudiesOptions,
    RatesOptions,
    DiagnoseOptions,
    RegularityOptions,
    UniversalityOptions,
    DoctorOptions,
)


def parse(arguments: Sequence[str]) -> Any:
    """Parse the options of a command into one of the types in ``OPTION_TYPES``.

    If there is no command to run, prints the help or an error about an option, and exits.
    """
    questions = [f"{study.name}: {study.question}" for study in COMMAND_STUDIES]
    commands = (Annotated[kind, tyro.conf.subcommand(command_name(kind))] for kind in OPTION_TYPES)
    union: Any = functools.reduce(operator.or_, commands)
    return tyro.cli(
        union,
        prog="sigmoid-attention",
        description="\n\n".join([PURPOSE, *questions, COMPLETION]),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def command_name(options_type: type) -> str:
    """The name of the command with these options.

    Example:
        >>> command_name(TrainOptions)
        'train'
    """
    return options_type.__name__.removesuffix("Options").lower()


def in_flags(sentence: str, options: object) -> str:
    """The sentence with the names of the options' fields replaced by their flags.

    Example:
        >>> from pathlib import Path
        >>> options = TrainOptions(Path("out"))
        >>> in_flags("vocab_size must be at least 257", options)
        '--vocab-size must be at least 257'
        >>> in_flags("lr must be positive; train.lr is another", options)
        '--lr must be positive; train.lr is another'
    """
    for name in _flag_names(options):
        flag = f"--{name.replace('_', '-')}"
        sentence = re.sub(rf"^{name}(?=:| (must|is|cannot|holds|already) )", flag, sentence)
        if "_" in name:
            sentence = re.sub(rf"(?<![\w.-]){name}\b", flag, sentence)
    return sentence


def _flag_names(options: object) -> Iterator[str]:
    for name, value in vars(options).items():
        if is_dataclass(value):
            yield from _flag_names(value)
        elif name not in POSITIONAL:
            yield name


def with_nearest(sentence: str) -> str:
    """Add the most similar valid name to an error message on an invalid name.

    Example:
        >>> with_nearest("preset must be one of tiny, small, got 'smal'")
        "preset must be one of tiny, small, got 'smal'; did you mean small?"
        >>> with_nearest("recipe must be 'paper' or 'recommended', got 'secret'")
        "recipe must be 'paper' or 'recommended', got 'secret'"
    """
    match = re.search(r"must be (one of )?(.+)(?:, got|; there is none at) '([^']*)'$", sentence)
    if not match:
        return sentence
    unquoted, listed, got = match.groups()
    names = re.findall(r"[\w.+-]+" if unquoted else r"'([\w.+-]+)'", listed)
    near = difflib.get_close_matches(got, names, 1)
    return f"{sentence}; did you mean {near[0]}?" if near else sentence
