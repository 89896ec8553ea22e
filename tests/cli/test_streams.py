"""The command's output to closed, broken or ASCII streams, and names with control characters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sigmoid_attention.cli import main, streams
from sigmoid_attention.lab.archive import Archive
from sigmoid_attention.lab.sweep import _orders
from sigmoid_attention.studies.conversion import page, positions
from sigmoid_attention.training.progress import StepProgress
from sigmoid_attention.training.terminal import in_sentences, tell, terminal, warn
from tests.support.studies import squares_study
from tests.support.tiers import sampled

SIGMOID = [sys.executable, "-m", "sigmoid_attention.cli"]
LIST = "studies list --out nowhere"
HEAD = """
import subprocess, sys
made = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
made.stdout.close()
print(made.wait(), made.stderr.read().decode(), end="")
"""


def shell(command, tmp_path, **environment):
    return subprocess.run(
        ["sh", "-c", f"{' '.join(SIGMOID)} {command}"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [LIST, "train --help"])
def test_a_reader_that_leaves_is_no_failure(tmp_path, command):
    argv = [sys.executable, "-c", HEAD, *SIGMOID, *command.split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout == "0 "


@pytest.mark.parametrize("command", ["train --help"])
def test_closed_output_is_no_failure(tmp_path, command):
    assert shell(f"{command} >&- 2>&-", tmp_path).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_output_is_named(tmp_path):
    done = shell("train --help > /dev/full", tmp_path)
    message = "sigmoid-attention: No space left on device (standard output)\n"
    assert (done.returncode, done.stderr) == (2, message)


def full():
    return os.open("/dev/full", os.O_WRONLY)


def without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("broken", [full, without_reader])
@pytest.mark.parametrize("bar", [True, False], ids=["bar", "lines"])
def test_standard_error_that_takes_nothing_fails_no_run(monkeypatch, broken, bar):
    if bar:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with open(broken(), "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        streams.prepare()
        with StepProgress("train", 0, 2, tokens_per_step=64, shown=True) as progress:
            progress.update(1, loss=5.5)
            progress.update(2, loss=5.5)
        terminal(errors=True).print("words")
        warn("words")
        print("words", file=sys.stderr, flush=True)
        sys.stderr.write("what is left for the end")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_the_exit_code_is_that_of_the_work(tmp_path):
    assert shell("trian 2> /dev/full", tmp_path).returncode == 2
    assert shell("studies list --out nowhere 2> /dev/full", tmp_path).returncode == 0


ASCII = {"PYTHONIOENCODING": "ascii"}
C = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "C"}


@pytest.mark.parametrize(
    ("command", "environment"),
    sampled(
        {
            "help-ascii": ("--help", ASCII),
            "help-C": ("--help", C),
            "universality-ascii": ("universality --help", ASCII),
            "universality-C": ("universality --help", C),
        },
        "help-C",
        "universality-ascii",
    ),
)
def test_output_is_ascii_where_the_encoding_is(tmp_path, command, environment):
    done = shell(command, tmp_path, COLUMNS="80", **environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.isascii()


def test_characters_without_a_substitute_are_escaped():
    streams.prepare()
    text = "\u2212 \u2264 \u2022 \u4e2d \udcff"
    assert text.encode("ascii", streams.HANDLER) == b"- <= * \\u4e2d \\udcff"


def test_a_name_cannot_steer_a_terminal(tmp_path, capsys):
    name = tmp_path / "\x1b[31mred\x9b\u202e[b][/x]"
    assert main(["generate", str(name)]) == 2
    message = capsys.readouterr().err
    assert r"\x1b[31mred\x9b\u202e[b][/x]" in message and "\x1b" not in message


def test_names_are_no_markup(tmp_path, capsys):
    """Nor is a damaged file's name, on every kind of console."""
    name, study = "a[/b] [red] :smile:", squares_study.study(squares_study.task(1))
    archive = Archive(tmp_path / name)
    archive.put(squares_study.task(1).key, b"damaged")
    console = Console(stderr=True, width=20)
    assert list(_orders([study], archive, console))
    assert f"{archive.path(squares_study.task(1).key)} is damaged" in capsys.readouterr().err
    terminal().print(name)
    tell(name)
    assert capsys.readouterr().out == f"{name}\n" * 2


def test_a_terminal_gets_no_control_characters_of_a_model(tmp_path, monkeypatch, capsys):
    from sigmoid_attention.cli import generate

    class Writes:
        eos = 256

        def decode(self, _ids):
            return b"a\x1b[31m\tb\n\xc2\x9b"

    class Model:
        def to(self, _device):
            return self

    monkeypatch.setattr(generate, "load_trained", lambda _folder: (Model(), Writes()))
    monkeypatch.setattr(generate, "encode_prompt", lambda *_: __import__("torch").zeros(1, 1))
    monkeypatch.setattr(generate, "continue_tokens", lambda _model, ids, **_: ids)
    for is_terminal, text in ((True, "a\\x1b[31m\tb\n\\x9b\n"), (False, "a\x1b[31m\tb\n\x9b\n")):
        monkeypatch.setattr(
            sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False
        )
        assert main(["generate", str(tmp_path), "--device", "cpu"]) == 0
        assert capsys.readouterr().out == text


def test_commands_of_the_conversion_speak_in_sentences(tmp_path, capsys):
    for ask in (
        lambda: page.main([str(tmp_path / "X"), str(tmp_path)]),
        lambda: positions.main([str(tmp_path)]),
        lambda: __import__("sigmoid_attention.not_there"),
    ):
        assert in_sentences(ask) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not hasattr(positions, "AutoModelForCausalLM"), "help needs no transformers"


COMMANDS = [
    ["compare", "--preset", "tiny"],
    ["train", "--preset", "tiny"],
    ["recipe"],
    ["routing"],
    ["studies", "run", "nguyen2024_table"],
    ["rates"],
    ["regularity", "nowhere", "--radius", "1"],
    ["universality", "max"],
    ["convert", "nowhere", "--data", "nowhere"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_output_that_cannot_be_written_is_found_out_before_the_work(tmp_path, capsys, command):
    (tmp_path / "file").touch()
    assert main([*command, "--out", str(tmp_path / "file" / "out")]) == 2
    message = capsys.readouterr().err
    assert f"could not write {Path(tmp_path, 'file', 'out')} (Not a directory)" in message
