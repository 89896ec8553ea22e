"""A folder in place of a file, or a file in place of a folder, is an error before the work."""

import pytest

from sigmoid_attention.cli import main
from tests.support.conversion.checkpoints import checkpoint

CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.previous.safetensors")
FOLDERS = ("rows", "runs", "records", "model", "report", "trained")
TRAIN = ["train", "--preset", "tiny", "--steps", "2", "--device", "cpu", "--resume"]
ARGUMENTS = {
    "train": TRAIN,
    "compare": ["compare", "--preset", "tiny", "--device", "cpu", "--resume"],
    "recipe": ["recipe", "--resume"],
    "routing": ["routing", "--resume"],
    "convert": ["convert", "MODEL", "--device", "cpu", "--needles", "64", "--resume"],
    "rates": ["rates", "--quick"],
    "studies": ["studies", "run", "nguyen2024_table"],
    "regularity": ["regularity", "nowhere", "--radius", "1"],
    "universality": ["universality", "max"],
}
PLACES = {
    "train": (*CHECKPOINTS, "loss.csv", "loss.svg", "config.json", "tokenizer.json", "records"),
    "compare": ("rows.parquet", "setting.json", "report.html", "rows", "runs"),
    "recipe": ("rows.parquet", "rows"),
    "routing": ("rows.parquet", "rows"),
    "convert": (*CHECKPOINTS, "curve.json", "setting.json", "model"),
    "rates": ("rows", "report", "report/studies.md", "report/rates.svg"),
    "studies": ("rows",),
    "regularity": ("certificate.json", "certificate.svg"),
    "universality": ("steepness.svg", "size.svg", "trained"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(checkpoint(tmp_path_factory.mktemp("tiny") / "model", "llama"))


@pytest.mark.parametrize(
    ("command", "place"), [(command, place) for command in PLACES for place in PLACES[command]]
)
def test_an_occupied_path_is_named_before_the_work(tmp_path, model, capsys, command, place):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    blocked = out / place
    blocked.parent.mkdir(parents=True)
    blocked.touch() if place in FOLDERS else blocked.mkdir()
    argv = [model if word == "MODEL" else word for word in ARGUMENTS[command]]
    if command in ("train", "compare", "routing", "convert"):
        argv += ["--data", str(text)]
    assert main([*argv, "--out", str(out)]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    kind = "file, but a folder" if place in FOLDERS else "folder, but a file"
    assert f"{blocked} is a {kind} is to be " in message
    assert {*out.rglob("*")} == {blocked, blocked.parent} - {out}
