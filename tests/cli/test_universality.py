"""`sigmoid-attention universality` on the command line: its output, files and errors."""

import pytest

from sigmoid_attention.cli import main

SMALL = ["--n", "2", "--error", "0.25", "--samples", "64"]


def run(*argv):
    return main(["universality", *map(str, argv)])


def test_it_prints_sizes_gap_and_errors_and_writes_a_figure(tmp_path, capsys):
    assert run("centre,max", *SMALL, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    once = ["grid", "contexts", "layers", "parameters", "smallest", "error"]
    assert heads == ["centre", *once, "max", *once, "figure:"]
    layers = next(line for line in lines if line.startswith("layers"))
    assert layers.split()[1] == "14:" and "values 4" in layers
    assert next(line for line in lines if line.startswith("parameters")).split()[1] == "588"
    assert "0 collisions" in next(line for line in lines if line.startswith("smallest gap"))
    assert "Heaviside" in next(line for line in lines if line.startswith("error"))
    figure = (tmp_path / "steepness.svg").read_text()
    assert "centre" in figure and "max" in figure


def test_a_function_of_ones_own_and_a_steepness(tmp_path, capsys):
    argv = ["torch:tanh", *SMALL, "--low", "-1", "--steepness", "12.5", "--out", tmp_path]
    assert run(*argv) == 0
    assert "with sigmoids of steepness 12.5 (enough: " in capsys.readouterr().out


def test_trained_transformers_beside_it(tmp_path, capsys):
    argv = ["max", *SMALL, "--trained", "--seeds", "1", "--steps", "1", "--out", tmp_path]
    assert run(*argv) == 0
    assert run(*argv) == 0
    assert "| max | " in capsys.readouterr().out
    assert "trained, softmax" in (tmp_path / "size.svg").read_text()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["median"], "function must be one of sorting, centre, max, mix, edge, or package."),
        (["torch:cumsum_"], "cannot be imported"),
        (["tests.cli.test_universality:by_place"], "must be permutation-equivariant; for tokens"),
        (["os:getcwd"], "'os:getcwd' must map a tensor of shape (n, d) = "),
        (
            ["torch:sum"],
            "must map a tensor of shape (n, d) = (3, 1) to one of the same shape; it g",
        ),
        (["builtins:len"], "it gave int"),
        (["sys:exit"], "must map a tensor"),
        (["max", "--error", "0.001", "--n", "4"], "error: 0.001 needs "),
        (["max", "--n", "0"], "n must be at least 1, got 0"),
        (["max", "--steepness", "0"], "steepness must be positive and finite, got 0.0"),
        (["max", "--trained", "--p", "1"], "trained: compares at p = 2 on the box [0, 1] only"),
        (["max", "--trained", "--seeds", "0"], "seeds must be at least 1, got 0"),
    ],
    ids=" ".join,
)
def test_bad_input_gives_one_sentence(argv, says, tmp_path, capsys):
    assert run(*argv, "--samples", "64", "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


def by_place(x_ND):
    return x_ND.cumsum(0)
