"""The parts that all commands share: names, versions, help, JSON, and errors that name flags."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sigmoid_attention import __version__
from sigmoid_attention.cli import COMMANDS, arguments, main
from sigmoid_attention.integrations.transformers import convert
from sigmoid_attention.studies import registry
from tests.support.cli import complaint
from tests.support.conversion.checkpoints import checkpoint
from tests.support.studies import recipe_store, routing_rows, squares_study

store = recipe_store.store  # a fixture


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out == f"sigmoid-attention {__version__}\n"


def test_the_package_itself_is_the_command():
    command = [sys.executable, "-m", "sigmoid_attention", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"sigmoid-attention {__version__}\n")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("compar", "there is no command 'compar'; did you mean compare?"),
        ("generte", "did you mean generate?"),
        ("study", "did you mean studies?"),
        ("version x", "version takes nothing more, got 'x'"),
        ("xyz", "there is no command 'xyz'; --help lists the commands"),
    ],
)
def test_a_misspelt_command(typed, says, capsys):
    assert says in complaint(capsys, *typed.split())


def test_the_commands_are_those_that_can_be_parsed(capsys):
    assert tuple(map(arguments.command_name, arguments.OPTION_TYPES)) == COMMANDS


def test_the_top_help_says_what_the_program_is_and_how_to_complete(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.index("Trains, compares, converts") < shown.index("compare: Should I switch")
    assert "--tyro-print-completion bash" in shown


EVERY = [
    *([command] for command in COMMANDS if command not in ("studies", "compare")),
    *(["studies", action] for action in ("run", "list", "report")),
]


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
def test_help_has_no_words_of_python_and_names_json(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    shown = capsys.readouterr().out
    assert not re.search(r"\bNone\b|\bFalse\b|\{None\}", shown)
    assert ("--json" in shown) == (command != ["generate"])


def test_sentences_name_arguments_as_they_are_typed(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    for argv, says in (
        (["universality", "max", "--error", "0.001", "--n", "4"], "--error: 0.001 needs "),
        (["universality", "max", "--error", "0.001", "--n", "4"], "--max-layers"),
        (["train", "--preset", "tiny", "--vocab-size", "9"], "--vocab-size must be at least 257"),
        (["train", "--preset", "tiny", "--seq-len", "0"], "--max-seq-len must be positive, got 0"),
        (
            ["train", "--preset", "tiny", "--dim", "33"],
            "--dim must be a multiple of --num-heads (2)",
        ),
        (["train", "--eval-every", "-1"], "--eval-every must be 0 (none) or a number of steps"),
        (["rates", "--workers", "0"], "--workers must be 1 or more"),
        (["recipe", "--candidates", "sigmoid"], "must have a softmax to compare with, got none"),
        (
            ["recipe", "--setting", "trend", "--candidates", "softmax"],
            "the trend compares softmax and sigmoid-centred only",
        ),
    ):
        assert says in complaint(capsys, *argv, *out)


def parsed(capsys, *argv):
    capsys.readouterr()
    assert main(argv) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.fixture
def squares(monkeypatch):
    monkeypatch.setattr(registry, "CLAIM_STUDIES", {"made": ("squares",)})
    monkeypatch.setattr(registry, "_module", lambda group, name: squares_study.__name__)


def test_studies_as_json(squares, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--json"]
    listed, _ = parsed(capsys, "studies", "list", *out)
    by_name = {study["name"]: study for study in listed["studies"]}
    assert list(by_name) == [*(study.name for study in registry.COMMAND_STUDIES), "squares"]
    assert (by_name["squares"]["tasks"], by_name["squares"]["done"]) == (3, 0)
    assert by_name["squares"]["command"] == "sigmoid-attention studies run squares"
    assert by_name["compare"]["command"] == "sigmoid-attention compare"
    assert by_name["compare"]["held"] == "none"
    ran, progress = parsed(capsys, "studies", "run", "squares", *out, "--workers", "1")
    (study,) = ran["studies"]
    assert study["name"] == "squares" and {"cell", "verdict"} <= study["findings"][0].keys()
    assert "3/3 squares" in progress
    reported, _ = parsed(capsys, "studies", "report", *out)
    assert reported["studies"] == ran["studies"] and Path(reported["reports"][0]).exists()


def test_recipe_as_json(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sigmoid_attention.cli.recipe.run", lambda *_, **__: store)
    monkeypatch.setattr("sigmoid_attention.cli.recipe._setting", lambda _: recipe_store.SETTING)
    result, _ = parsed(capsys, "recipe", "--json", "--out", str(tmp_path / "out"))
    assert result["recommended"] == "sigmoid-centred"
    assert result["standings"][0]["at"]["8"]["bits"]["n"] == 3


def test_recipe_with_an_unknown_setting(tmp_path, capsys):
    sentence = complaint(capsys, "recipe", "--setting", "best", "--out", str(tmp_path / "out"))
    assert "setting must be one of trial, choose, report" in sentence


def test_routing_as_json(tmp_path, capsys, monkeypatch):
    rows = routing_rows.run_rows(tmp_path / "made", seeds=2)
    store = SimpleNamespace(rows=lambda: rows)
    monkeypatch.setattr("sigmoid_attention.cli.routing.run", lambda *_, **__: store)
    document, _ = parsed(capsys, "routing", "--json", "--out", str(tmp_path / "out"))
    assert document["verdict"] and document["findings"][0]["quantity"]["metric"]
    # Two seeds give no interval, and JSON has no word for what is no number.
    assert document["findings"][0]["difference"]["low"] is None


def test_universality_as_json(tmp_path, capsys):
    argv = ["universality", "max", "--n", "2", "--error", "0.25", "--samples", "64"]
    document, progress = parsed(capsys, *argv, "--json", "--out", str(tmp_path))
    assert document["functions"]["max"]["layers"] > 0 and "smallest gap" in progress
    assert Path(document["figure"]).exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 120)
    argv = ["train", "--preset", "tiny", "--data", str(text), "--steps", "2", "--batch-size", "2"]
    # The bounds do not cover centred keys.
    argv += ["--recipe", "paper"]
    return [*argv, "--device", "cpu", "--out", str(folder / "runs" / "sigmoid-seed100")], folder


def test_training_and_regularity_as_json(trained, tmp_path, capsys):
    argv, folder = trained
    document, progress = parsed(capsys, *argv, "--json")
    assert document["steps"] == 2 and 5 < document["heldout_bits_per_byte"] < 10
    assert "bits/byte" in progress
    model = argv[-1]
    argv = ["regularity", model, "--radius", "8", "--tokens", "4", "--seconds", "0.1", "--json"]
    document, _ = parsed(capsys, *argv, "--out", str(tmp_path))
    assert document["branches"] and document["product_within"] >= document["product_at"]
    # The folder of a comparison holds no model itself; the sentence names one that it has.
    message = complaint(capsys, "generate", str(folder))
    assert f"no config.json in it; {model} holds one" in message


def test_diagnosis_of_a_trained_model(trained, capsys):
    argv, folder = trained
    if not Path(argv[-1]).exists():
        parsed(capsys, *argv, "--json")
    text = ["--data", str(folder / "text"), "--sequences", "1"]
    document, _ = parsed(capsys, "diagnose", argv[-1], *text, "--json")
    assert document["findings"] == [] and len(document["layers"][0]["mass_H"]) > 1
    assert main(["diagnose", argv[-1], *text]) == 0
    shown = capsys.readouterr().out
    assert "mass of a row" in shown and "Nothing is wrong with what was examined." in shown
    assert "sequences must be 1 or more, got 0" in complaint(
        capsys, "diagnose", argv[-1], "--sequences", "0"
    )
    assert "the held-out text has" in complaint(
        capsys, "diagnose", argv[-1], *text[:2], "--sequences", "999"
    )


def test_diagnosis_of_a_model_of_transformers(tmp_path, capsys):
    softmax = checkpoint(tmp_path / "softmax", "llama")
    message = complaint(capsys, "diagnose", str(softmax))
    assert "a model of transformers with softmax attention" in message
    tokenizer = AutoTokenizer.from_pretrained(softmax)
    converted = convert(AutoModelForCausalLM.from_pretrained(softmax), bias=3.0)
    converted.save_pretrained(tmp_path / "sigmoid")
    tokenizer.save_pretrained(tmp_path / "sigmoid")
    argv = ["diagnose", str(tmp_path / "sigmoid"), "--sequences", "1", "--tokens", "32"]
    document, _ = parsed(capsys, *argv, "--json")
    assert {finding["fault"] for finding in document["findings"]} & {"mass", "saturated"}


def test_generate_of_a_model_of_transformers_says_how_to_load_it(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").touch()
    for folder in (tmp_path, tmp_path / "model"):
        assert "load it with from_pretrained" in complaint(capsys, "generate", str(folder))


def test_every_table_has_a_field_for_json():
    """What prints tables is every command but `generate`, which writes a text."""
    for command in arguments.OPTION_TYPES:
        if command in (
            arguments.GenerateOptions,
            arguments.StudiesOptions,
            arguments.CompareOptions,
        ):
            continue
        assert "json" in {field.name for field in fields(command)}
