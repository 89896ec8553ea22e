"""The command `sigmoid-attention`: its subcommands, exit codes and error messages.

Only this file and `doctor` work without the lab extra. The module of a command is imported when
the command runs, so that `--help` is fast.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from sigmoid_attention import __version__
from sigmoid_attention.cli import streams
from sigmoid_attention.training.lock import only_writer
from sigmoid_attention.training.signals import interruptible, requests_ignored
from sigmoid_attention.training.terminal import sentence, warn

# How often an idle OpenMP thread of torch checks for work before it sleeps; read when torch is
# loaded. By default threads spin for milliseconds, which makes a training step ten times slower
# when another process needs a core. Without spinning a step that runs alone is slower
# (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

NAME = "sigmoid-attention"
COMMANDS = (
    *("compare", "train", "generate", "recipe", "convert", "routing"),
    *("studies", "rates", "diagnose", "regularity", "universality", "doctor"),
)
BAD_INPUT = 2
INTERRUPTED = 130
# Files in a command's output folder from which the command can continue.
RESUMABLE_FILES = (
    *("checkpoint*.safetensors", "runs/*/checkpoint*.safetensors"),
    *("rows/*.parquet", "trained/rows/*.parquet"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 for success; 2 for bad input, and if a task of a study failed; 128 plus the number of the
    signal, such as 130 for Ctrl-C, if the process was requested to end.

    Errors of the user and of the operating system are printed as one sentence on standard error.
    It is no error if the reader of standard output closes it early, as `head` does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    # A second signal must not end the process before the message is printed.
    with requests_ignored():
        try:
            return _exit_code(arguments)
        except KeyboardInterrupt as error:
            message = "; ".join(["interrupted", *getattr(error, "__notes__", [])])
            return _fail(message, getattr(error, "code", INTERRUPTED))
        except (BrokenPipeError, SystemExit) as error:
            if streams.reader_left(error):
                return 0
            raise


def _exit_code(arguments: list[str]) -> int:
    try:
        with interruptible():
            try:
                return _run(arguments)
            finally:
                # Flushed here, because a failure at the interpreter's exit gives no message.
                sys.stdout.flush()
    except ModuleNotFoundError as error:
        from sigmoid_attention.extras import INSTALL_LAB, LAB

        if error.name not in LAB:
            raise
        return _fail(
            f"{error.name} is not installed; the command line needs the lab extra: {INSTALL_LAB}",
            BAD_INPUT,
        )
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return _fail(sentence(streams.named(error)), BAD_INPUT)
    except RuntimeError as error:
        from sigmoid_attention.training.divergence import Diverged

        if not isinstance(error, Diverged):
            raise
        return _fail(sentence(error), BAD_INPUT)


def _run(argv: list[str]) -> int:
    # Before the import of tyro, because doctor must work if the lab extra is broken or missing.
    if argv[:1] == ["doctor"] and set(argv[1:]) <= {"--json"}:
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

    options = parse(argv)
    try:
        with interruptible():
            return _run_command(options)
    except KeyboardInterrupt as error:
        error.__notes__ = [_how_to_continue(error, options)]
        raise
    except ValueError as error:
        if len(error.args) == 1:
            error.args = (with_nearest(in_flags(str(error), options)),)
        raise


def _unknown(command: str) -> str:
    near = difflib.get_close_matches(command, COMMANDS, 1)
    hint = f"did you mean {near[0]}?" if near else "--help lists the commands"
    return f"there is no command {command!r}; {hint}"


def _run_command(options: object) -> int:
    """Call the function of the command; for `TrainOptions` it is `cli.train.train`."""
    from sigmoid_attention.cli.arguments import command_name

    name = command_name(type(options))
    command = getattr(import_module(f"sigmoid_attention.cli.{name}"), name)
    with _folder_lock(options):
        return command(options) or 0


def _folder_lock(options: Any) -> AbstractContextManager[None]:
    """Locks the folder that a command writes to, if it writes to one."""
    folder = _output_folder(options)
    return only_writer(folder) if folder else nullcontext()


def _output_folder(options: Any) -> Path | None:
    from sigmoid_attention.cli.study_options import ListStudiesOptions, ReportStudiesOptions

    # These only read rows, which is safe while a study runs.
    if isinstance(getattr(options, "action", None), ListStudiesOptions | ReportStudiesOptions):
        return None
    return getattr(getattr(options, "action", options), "out", None)


def _how_to_continue(error: KeyboardInterrupt, options: Any) -> str:
    """The message after an interrupt: the saved work, and the command that continues it."""
    again = "the same command with --resume" if hasattr(options, "resume") else "the same command"
    notes = " ".join(getattr(error, "__notes__", []))
    if notes:
        return f"{notes}, and {again} goes on there"
    out = _output_folder(options)
    if out and any(path for pattern in RESUMABLE_FILES for path in out.glob(pattern)):
        return f"what is finished is kept in {out}, and {again} goes on with it"
    return f"nothing was finished that could be kept, and {again} begins anew"


def _fail(message: str, code: int) -> int:
    warn(f"{NAME}: {message}")
    return code
