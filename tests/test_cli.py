"""The command line: its results, and one sentence and exit code 2 for every error."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sigmoid_attention import cli
from sigmoid_attention.cli import main
from sigmoid_attention.training import forecast
from sigmoid_attention.training.loss_log import read_losses
from sigmoid_attention.training.model_folder import load_trained
from tests.support.cli import complaint

QUICK = ["--steps", "6", "--batch-size", "2", "--warmup-steps", "2", "--device", "cpu"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 120)
    return str(path)


@pytest.fixture
def trained(corpus, tmp_path):
    out = str(tmp_path / "trained")
    assert main(["train", "--preset", "tiny", "--data", corpus, "--out", out, *QUICK]) == 0
    return out


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "absent", "there is none at"),
        (lambda folder: (folder / "nothing.txt").touch() or folder / "nothing.txt", "no text"),
        (lambda folder: (folder / "nothing").mkdir() or folder / "nothing", "no text"),
        (lambda folder: (folder / "a").write_bytes(b"short") and folder / "a", "shorter than one"),
        (lambda folder: (folder / "a").write_bytes(b"b" * 200) and folder / "a", "held-out part"),
    ],
    ids=["missing", "empty file", "empty folder", "shorter than one sequence", "little held out"],
)
def test_data_that_cannot_be_used(command, make, says, tmp_path, capsys):
    out = tmp_path / "out"
    data = str(make(tmp_path))
    message = complaint(capsys, command, "--preset", "tiny", "--data", data, "--out", str(out))
    assert says in message
    assert f"--data: {data!r} is too short" in message or says in ("there is none at", "no text")
    assert not out.exists()


def test_data_that_may_not_be_read_is_named(tmp_path, capsys, monkeypatch):
    """As in /proc: a user with all rights meets such entries nowhere else."""
    (tmp_path / "text").write_bytes(b"words " * 100)
    closed = tmp_path / "closed"
    closed.touch()
    stat = os.stat

    def refusing(path, *more, **settings):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *more, **settings)

    monkeypatch.setattr(os, "stat", refusing)
    for data in (tmp_path, closed):
        message = complaint(capsys, "train", "--data", str(data), "--out", str(tmp_path / "out"))
        assert f"--data cannot be read: {closed} (Permission denied)" in message


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["compare", "--preset", "huge"], "preset must be one of tiny, small, medium, got 'huge'"),
        (["compare", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["compare", "--steps", "-3"], "steps must be at least 1, got -3"),
        (["compare", "--device", "abacus"], "device must be one of auto, cpu, cuda"),
        (["train", "--preset", "huge"], "preset must be one of tiny"),
        (["train", "--preset", "smal"], "got 'smal'; did you mean small?"),
        (["train", "--recipe", "papr"], "got 'papr'; did you mean paper?"),
        (["train", "--activation", "sigmod"], "got 'sigmod'; did you mean sigmoid?"),
        (["compare", "--position", "rop"], "got 'rop'; did you mean rope?"),
        (["train", "--recipe", "secret"], "recipe must be 'paper' or 'recommended'"),
        (["train", "--activation", "tanh"], "activation must be one of"),
        (["train", "--preset", "tiny", "--vocab-size", "9"], "--vocab-size must be at least 257"),
        (["train", "--steps", "0"], "steps must be at least 1"),
        (["train", "--lr", "-1"], "lr must be positive"),
        (["train", "--lr", "1e300"], "--lr must be positive, from 1e-30 to 1e30"),
        (["train", "--lr", "1e-300"], "--lr must be positive, from 1e-30 to 1e30"),
        (["train", "--vocab-size", "1000000000000"], "--vocab-size must be at most 16,777,216"),
        (["train", "--dim", "1000000000000"], "--dim must be at most"),
        (["train", "--batch-size", "9" * 20], "--batch-size must be at most"),
        (["train", "--layers", "1000000"], "--layers must be at most 10,000"),
        (["train", "--steps", "9" * 20], "--steps must be at least 1 and at most 2**53"),
        (["train", "--seed", "9" * 20], "--seed must be a whole number of 64 bits"),
        (["train", "--record", "-1"], "record must be 0 (none) or a number of steps"),
    ],
)
def test_values_that_cannot_be_meant(argv, says, corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert says in complaint(capsys, *argv, "--data", corpus, "--out", str(out))
    assert not out.exists()


@pytest.mark.parametrize("command", ["compare", "train"])
def test_an_occupied_folder_is_left_alone(command, corpus, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    message = complaint(capsys, command, "--preset", "tiny", "--data", corpus, "--out", str(out))
    assert "nothing was overwritten" in message
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_full_disk(corpus, tmp_path, capsys, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = complaint(
        capsys, "train", "--preset", "tiny", "--data", corpus, "--out", str(tmp_path / "out")
    )
    assert "No space left on device" in message


def test_a_run_that_diverges_says_where(corpus, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["train", "--preset", "tiny", "--data", corpus, "--out", out, "--lr", "1e30"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "diverged at step" in message and "is not finite" in message


def test_an_interrupt_is_no_error_of_the_input(tmp_path, monkeypatch, capsys):
    def interrupt(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sigmoid_attention.cli._run_command", interrupt)
    for command, kept, message in (
        ("compare", "", "nothing was finished that could be kept, and the same command with"),
        ("compare", "rows/a.parquet", "and the same command with --resume goes on with it"),
        ("compare", "runs/a/checkpoint.safetensors", "what is finished is kept in "),
        ("train", "config.json", "nothing was finished that could be kept, "),
        ("train", "checkpoint.previous.safetensors", "what is finished is kept in "),
        ("rates", "rows/a.parquet", ", and the same command goes on with it"),
    ):
        out = tmp_path / f"{command} {kept.replace('/', ' ')}"
        if kept:
            (out / kept).parent.mkdir(parents=True)
            (out / kept).touch()
        assert main([command, "--out", str(out)]) == 130
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_request_to_end_does_not_hide_the_message(second, monkeypatch, tmp_path, capsys):
    def interrupt(_options):
        raise KeyboardInterrupt

    def fail(message, code):
        signal.raise_signal(getattr(signal, second))
        return fail_as_before(message, code)

    fail_as_before = cli._fail
    monkeypatch.setattr(cli, "_fail", fail)
    monkeypatch.setattr(cli, "_run_command", interrupt)
    assert main(["recipe", "--out", str(tmp_path)]) == 130
    assert "sigmoid-attention: interrupted; nothing was finished" in capsys.readouterr().err


def test_a_fault_of_the_library_is_not_dressed_up_as_the_users(monkeypatch):
    def fault(_argv):
        raise RuntimeError("a bug")

    monkeypatch.setattr("sigmoid_attention.cli._run", fault)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["compare"])


def test_without_the_lab_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "sigmoid_attention.cli.arguments", raising=False)
    monkeypatch.setitem(sys.modules, "tyro", None)
    message = complaint(capsys, "compare")
    assert "tyro is not installed" in message and "pip install '.[lab]'" in message


def test_train_then_generate(trained, capsys):
    capsys.readouterr()
    argv = ["generate", trained, "--prompt", "the quick", "--max-new-tokens", "9"]
    assert main([*argv, "--device", "cpu", "--temperature", "0"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("the quick")
    assert main([*argv, "--device", "cpu", "--temperature", "0", "--seed", "5"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--temperature", "-1"], "temperature must be 0"),
        (["--temperature", "1e-300"], "temperature must be 0"),
        (["--temperature", "1e300"], "temperature must be 0"),
        (["--top-p", "0"], "--top-p must be above 0"),
        (["--top-p", "1e-300"], "--top-p must be above 0"),
        (["--seed", "9" * 20], "--seed must be a whole number of 64 bits"),
        (["--max-new-tokens", "9" * 20], "--max-new-tokens must be at most 1,000,000"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be positive"),
    ],
)
def test_generate_refuses_what_cannot_be_meant(argv, says, trained, capsys):
    assert says in complaint(capsys, "generate", trained, "--device", "cpu", *argv)


@pytest.mark.parametrize("argv", ["--top-p 1e-37", "--temperature 1e-37", "--temperature 1e37"])
def test_the_smallest_and_largest_numbers_still_draw(argv, trained):
    more = ["--max-new-tokens", "3", "--device", "cpu"]
    assert main(["generate", trained, *argv.split(), *more]) == 0


def test_generate_needs_a_trained_model(tmp_path, capsys):
    assert "holds no trained model" in complaint(capsys, "generate", str(tmp_path))


def test_training_resumes_only_as_it_began(trained, corpus, capsys):
    same = ["train", "--preset", "tiny", "--data", corpus, "--out", trained, *QUICK]
    assert main([*same, "--resume"]) == 0
    for change, field in ((["--lr", "1e-4"], "train.lr"), (["--activation", "softmax"], "model.")):
        message = complaint(capsys, *same, "--resume", *change)
        assert "belongs to another configuration" in message and field in message


def losses(folder):
    return read_losses(Path(folder) / "loss.csv")


def test_training_leaves_its_losses_and_their_curve(corpus, tmp_path, capsys):
    out = str(tmp_path / "my run")
    argv = ["train", "--preset", "tiny", "--data", corpus, "--out", out, *QUICK]
    assert main([*argv, "--eval-every", "4"]) == 0
    captured = capsys.readouterr()
    assert f"sigmoid-attention generate '{out}' --prompt" in captured.out
    rows = losses(out)
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.step for row in rows if row.heldout_bits_per_byte] == [4, 6]
    assert rows[-1].tokens == 6 * 2 * 32
    # Bytes and the ends of documents: one unit everywhere, and 8 bits are the most a byte has.
    assert f"held-out {rows[-1].heldout_bits_per_byte:.4f}"[:13] in captured.out
    assert 7 < rows[0].training_bits_per_byte < 10
    assert "nats" not in captured.out + captured.err and "nan" not in captured.err
    assert "bits/byte" in captured.err
    assert (Path(out) / "loss.svg").read_text().startswith("<svg")


def test_a_training_is_continued_with_more_steps_and_never_with_fewer(trained, corpus, capsys):
    argv = ["train", "--preset", "tiny", "--data", corpus, "--out", trained, *QUICK[2:]]
    before = losses(trained)
    assert main([*argv, "--steps", "9", "--resume"]) == 0
    assert losses(trained)[:6] == before
    assert [row.step for row in losses(trained)] == list(range(1, 10))
    assert main(["generate", trained, "--max-new-tokens", "3", "--device", "cpu"]) == 0
    assert "steps is 9 there and 8 here" in complaint(capsys, *argv, "--steps", "8", "--resume")
    assert [row.step for row in losses(trained)] == list(range(1, 10))


def test_a_changed_loss_is_shown_by_no_resumed_run(trained, corpus, capsys):
    argv = ["train", "--preset", "tiny", "--data", corpus, "--out", trained, *QUICK[2:]]
    log = Path(trained) / "loss.csv"
    capsys.readouterr()
    assert main([*argv, "--steps", "6", "--resume"]) == 0
    intact = capsys.readouterr()
    assert "loss.csv is not what" not in intact.err
    for damage in (b"9.99,", b"\xff,"):
        lines = log.read_bytes().splitlines(True)
        *before, tested, rate, _ = lines[-1].split(b",")
        lines[-1] = b",".join([*before, damage + rate, b"00000000\n"])
        log.write_bytes(b"".join(lines))
        assert main([*argv, "--steps", "6", "--resume"]) == 0
        again = capsys.readouterr()
        assert again.out.splitlines()[1] == intact.out.splitlines()[1]
        assert again.err.count("loss.csv is not what this run wrote") == 1
        assert losses(trained)[-1].heldout_bits_per_byte == float(tested)
    log.unlink()
    assert main([*argv, "--steps", "8", "--resume"]) == 0
    assert "loss.csv is not what this run wrote" in capsys.readouterr().err
    assert [row.step for row in losses(trained)] == list(range(1, 9))


@pytest.mark.parametrize("content", ["{}", '{"run": {}}', '{"run": {"model": {}}}'])
@pytest.mark.parametrize("steps", ["6", "7"])
def test_a_configuration_that_describes_no_run_is_written_again(
    trained, corpus, capsys, content, steps
):
    (Path(trained) / "config.json").write_text(content)
    argv = ["train", "--preset", "tiny", "--data", corpus, "--out", trained, *QUICK[2:]]
    assert main([*argv, "--steps", steps, "--resume"]) == 0
    assert "config.json is damaged" in capsys.readouterr().err
    assert main(["generate", trained, "--max-new-tokens", "3", "--device", "cpu"]) == 0


def test_a_model_that_does_not_fit_is_refused_before_anything_is_made(
    corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(forecast, "free_bytes", lambda device: 20_000_000_000)
    monkeypatch.setattr("sigmoid_attention.cli.train.load_corpus", None)
    out = tmp_path / "out"
    argv = ["train", "--preset", "gala-7b", "--data", corpus, "--out", str(out), "--device", "cpu"]
    message = complaint(capsys, *argv, "--steps", "1")
    assert "gala-7b needs about" in message and "has 20 GB free" in message
    assert not out.exists()
    monkeypatch.setattr(forecast, "free_bytes", lambda device: 1_000_000)
    message = complaint(capsys, "compare", "--preset", "tiny", "--device", "cpu", "--out", str(out))
    assert "tiny needs about" in message and not out.exists()


def test_a_large_preset_on_a_cpu_is_warned_about_with_an_estimate(
    corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sigmoid_attention.training.text_run.train", refuse_to_run)
    argv = ["train", "--data", corpus, "--out", str(tmp_path / "out"), "--device", "cpu"]
    sizes = ["--layers", "1", "--dim", "32", "--max-seq-len", "16", "--batch-size", "1"]
    assert main([*argv, "--preset", "medium", *sizes]) == 2
    message = capsys.readouterr().err
    assert "warning: on this CPU 1,000 steps of medium take about" in message and "a GPU" in message
    assert main([*argv, "--preset", "tiny", "--steps", "2", "--resume"]) == 2
    assert "warning: on this CPU" not in capsys.readouterr().err


def refuse_to_run(*_arguments, **_settings):
    raise ValueError("not in this test")


def test_sizes_in_place_of_the_presets(corpus, tmp_path):
    out = tmp_path / "out"
    sizes = ["--dim", "24", "--layers", "1", "--num-heads", "3", "--seq-len", "16"]
    argv = ["train", "--preset", "tiny", "--data", corpus, "--out", str(out), *QUICK]
    assert main([*argv, *sizes]) == 0
    model = load_trained(out)[0]
    assert (model.config.dim, model.config.layers, model.config.num_heads) == (24, 1, 3)
    assert model.config.max_seq_len == 16 and losses(out)[0].tokens == 32


def test_the_data_are_described_before_training(tmp_path, capsys):
    folder = tmp_path / "texts"
    for name in ("a.py", "b.py", "c.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("the quick brown fox\n" * 60)
    (folder / "x.png").write_bytes(b"\x89PNG\0\0")
    argv = ["train", "--preset", "tiny", "--data", str(folder), *QUICK]
    assert main([*argv, "--out", str(tmp_path / "out"), "--vocab-size", "100000"]) == 0
    message = capsys.readouterr().err
    assert (
        "text: 3 files, 3,600 bytes; 1 file held out, 1,200 bytes (33%); 1 file skipped" in message
    )
    assert "warning: only 1 file held out" in message
    assert "tokens, as the text has no more pairs" in message and "vocabulary: 2" in message
    for data, says in (("", "got an empty name"), (str(folder / "x.png"), "train --binaries")):
        assert says in complaint(capsys, *argv[:3], "--data", data, "--out", str(tmp_path / "no"))


def test_training_with_byte_pairs_and_records(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["train", "--preset", "tiny", "--data", corpus, "--out", str(out), *QUICK]
    assert main([*argv, "--vocab-size", "270", "--record", "2", "--recipe", "paper"]) == 0
    assert "bits a byte" in capsys.readouterr().out
    assert list((out / "records").glob("*.parquet"))
    assert main(["generate", str(out), "--max-new-tokens", "3", "--device", "cpu"]) == 0


def test_compare_shows_a_table_and_a_verdict_and_writes_the_report(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["compare", "--preset", "tiny", "--seeds", "1", "--steps", "6", "--device", "cpu"]
    assert main([*argv, "--data", corpus, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    for text in (
        "Text, 32 tokens (n)",
        "Associative recall, in the end",
        "Training step",
        "No verdict: 1 seed gives no interval, 3 would",
        f"report: {out / 'report.html'}",
    ):
        assert text in captured.out
    assert "text, sigmoid, seed 100" in captured.err
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert (out / "rows.parquet").exists()
    assert "text.lr was 0.003 when this folder" in complaint(
        capsys, *argv, "--lr", "0.1", "--data", corpus, "--out", str(out), "--resume"
    )
    assert main([*argv, "--data", corpus, "--out", str(out), "--resume", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "--preset small --steps 800 --seeds 4" in document["advice"][0]["command"]
    # The models that it trained can write, too.
    assert main(["generate", str(out / "runs" / "sigmoid-seed100"), "--device", "cpu"]) == 0


def test_the_command_itself_exits_with_the_code(tmp_path):
    command = [sys.executable, "-m", "sigmoid_attention.cli", "generate", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"sigmoid-attention: {tmp_path} holds no trained model: there is no config.json in it\n"
    )


@pytest.mark.parametrize("command", [[], ["compare"], ["train"], ["generate"], ["doctor"]])
def test_help_for_every_command(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "usage: sigmoid-attention" in capsys.readouterr().out
