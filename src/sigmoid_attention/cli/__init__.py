"""The command `sigmoid-attention` and its parts: compare, train, studies and the others.

Only this file and `doctor` work without the lab extra; every other command is imported when it is
run, so that asking for help loads nothing heavy.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from sigmoid_attention import __version__
from sigmoid_attention.cli import streams
from sigmoid_attention.training.lock import only_writer
from sigmoid_attention.training.signals import interruptible
from sigmoid_attention.training.terminal import sentence, warn

# Read once, when torch loads its thread pool: how often a thread looks again before it sleeps.
# By default that is for milliseconds, and a training step becomes ten times slower as soon as
# another process wants a core; asleep at once it is slower alone (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

NAME = "sigmoid-attention"
COMMANDS = (
    *("compare", "train", "generate", "recipe", "convert", "routing"),
    *("studies", "rates", "regularity", "universality", "doctor"),
)
BAD_INPUT = 2
INTERRUPTED = 130
# What a command goes on from, in the folder that it writes to.
KEPT = (
    *("checkpoint*.safetensors", "runs/*/checkpoint*.safetensors"),
    *("rows/*.parquet", "trained/rows/*.parquet"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0; 2 for bad input and for tasks of a study that failed; 128 and the signal's number, such as
    130 for Ctrl-C, if it was asked to end.

    What a user can get wrong, or a machine can refuse, is one sentence on standard error. A reader
    of standard output that leaves early, as `head` does, is no error.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    try:
        return _answer(arguments)
    except KeyboardInterrupt as error:
        said = "; ".join(["interrupted", *getattr(error, "__notes__", [])])
        return _say(said, getattr(error, "code", INTERRUPTED))
    except (BrokenPipeError, SystemExit) as error:
        if streams.reader_left(error):
            return 0
        raise


def _answer(arguments: list[str]) -> int:
    try:
        with interruptible():
            try:
                return _run(arguments)
            finally:
                # Not left to the interpreter's end, which has no sentence for a failure.
                sys.stdout.flush()
    except ModuleNotFoundError as error:
        from sigmoid_attention.extras import INSTALL_LAB, LAB

        if error.name not in LAB:
            raise
        return _say(
            f"{error.name} is not installed; the command line needs the lab extra: {INSTALL_LAB}",
            BAD_INPUT,
        )
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _say(sentence(streams.named(error)), BAD_INPUT)
    except RuntimeError as error:
        from sigmoid_attention.training.divergence import Diverged

        if not isinstance(error, Diverged):
            raise
        return _say(sentence(error), BAD_INPUT)


def _run(argv: list[str]) -> int:
    # By name and before anything else: a doctor who needs the patient's help is of no use.
    if argv in (["doctor"], ["doctor", "--json"]):
        from sigmoid_attention.doctor import doctor

        doctor(as_json="--json" in argv)
        return 0
    if argv and argv[0] in ("--version", "-V", "version"):
        if len(argv) > 1:
            raise ValueError(f"{argv[0]} takes nothing more, got {argv[1]!r}")
        print(f"{NAME} {__version__}")
        return 0
    if argv and argv[0] not in COMMANDS and not argv[0].startswith("-"):
        raise ValueError(_unknown(argv[0]))
    from sigmoid_attention.cli.arguments import in_flags, parse, with_nearest

    asked = parse(argv)
    try:
        with interruptible():
            return _carry_out(asked)
    except KeyboardInterrupt as error:
        error.__notes__ = [_kept(error, asked)]
        raise
    except ValueError as error:
        if len(error.args) == 1:
            error.args = (with_nearest(in_flags(str(error), asked)),)
        raise


def _unknown(command: str) -> str:
    near = difflib.get_close_matches(command, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else "--help shows those that there are"
    return f"there is no command {command!r}; {hint}"


def _carry_out(asked: object) -> int:
    from sigmoid_attention.cli.arguments import (
        Compare,
        Convert,
        Generate,
        Rates,
        Recipe,
        Regularity,
        Routing,
        Studies,
        Train,
        Universality,
    )

    with _written_to(asked):
        match asked:
            case Compare():
                from sigmoid_attention.cli.compare import compare

                compare(asked)
            case Train():
                from sigmoid_attention.cli.train import train

                train(asked)
            case Generate():
                from sigmoid_attention.cli.generate import generate

                generate(asked)
            case Recipe():
                from sigmoid_attention.cli.recipe import recipe

                recipe(asked)
            case Routing():
                from sigmoid_attention.cli.routing import routing

                routing(asked)
            case Regularity():
                from sigmoid_attention.cli.regularity import regularity

                regularity(asked)
            case Universality():
                from sigmoid_attention.cli.universality import universality

                universality(asked)
            case Convert():
                from sigmoid_attention.cli.convert import convert

                convert(asked)
            case Studies():
                from sigmoid_attention.cli.studies import studies

                return studies(asked)
            case Rates():
                from sigmoid_attention.cli.rates import rates

                return rates(asked)
    return 0


def _written_to(asked: Any) -> AbstractContextManager[None]:
    """Keeps the folder that a command writes to for itself; some write to none."""
    folder = _folder(asked)
    return only_writer(folder) if folder else nullcontext()


def _folder(asked: Any) -> Path | None:
    from sigmoid_attention.cli.arguments import ListStudies, ReportStudies

    # They read what a study has so far, also while it runs.
    if isinstance(getattr(asked, "action", None), ListStudies | ReportStudies):
        return None
    return getattr(getattr(asked, "action", asked), "out", None)


def _kept(error: KeyboardInterrupt, asked: Any) -> str:
    """What an interrupted command leaves, and how to go on."""
    again = "the same command with --resume" if hasattr(asked, "resume") else "the same command"
    told = " ".join(getattr(error, "__notes__", []))
    if told:
        return f"{told}, and {again} goes on there"
    out = _folder(asked)
    if out and any(path for pattern in KEPT for path in out.glob(pattern)):
        return f"what is finished is kept in {out}, and {again} goes on with it"
    return f"nothing was finished that could be kept, and {again} begins anew"


def _say(said: str, code: int) -> int:
    warn(f"{NAME}: {said}")
    return code
