"""The comparison in the terminal: its table and the lines below it."""

import io
import json
import re

import pytest
from rich.console import Console

from sigmoid_attention.cli.compare import as_json, show
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.report.page import page
from sigmoid_attention.studies.compare.standing import reading
from tests.support.studies.synthetic_comparison import NO_KERNEL, synthetic_comparison


def shown(**case) -> str:
    console = Console(file=io.StringIO())
    show(synthetic_comparison(**case), console)
    return " ".join(console.file.getvalue().split())


def test_the_table_ends_with_what_the_fused_operator_gains():
    text = shown()
    places = [
        text.index(part)
        for part in (
            "question verdict softmax sigmoid sigmoid against softmax",
            "Training step Softmax cheaper 215 ms 234 ms 9% slower (1.090×, 1.084 to 1.096)",
            "sigmoid, fused or not verdict unfused fused fused against unfused",
            "Training step Fused faster 384 ms 234 ms 39% faster (0.610×, 0.606 to 0.615)",
            "Operator forward + backward, 4,096 tokens Fused faster 611 ms 154 ms",
            "Sigmoid attention ran in the fused C++ kernel (vector path avx512).",
            "Synthetic: stay with softmax",
            "What to do next: 1. Synthetic advice: train more seeds.",
            "sigmoid-attention compare --seeds 9 --resume",
        )
    ]
    assert places == sorted(places)


def test_without_a_kernel_it_says_why_there_is_no_figure():
    text = shown(operator=NO_KERNEL)
    assert (
        "Training step, fused against unfused: not measured, since sigmoid attention ran in "
        "PyTorch alone (no fused kernel: no C++ compiler was found)."
    ) in text
    assert "fused or not" not in text


@pytest.mark.parametrize("without", [("operator", "step", "peak"), ("",)], ids=["times", "all"])
def test_without_times_the_gain_is_not_mentioned(without):
    assert "fused" not in shown(without=without)


CASES = {
    "3-seeds": {},
    "1-seed": {"seeds": 1},
    "softmax-only": {"arms": ("softmax",)},
    "all-or-nothing": {"seeds": 4, "fails": (0, 2)},
    # Worse than a table of byte pairs, and nothing learnt: rows that tell nothing.
    "silent": {"seeds": 3, "fails": (0, 1, 2), "pairs": 1.5},
}


@pytest.mark.parametrize("case", CASES)
def test_the_terminal_and_the_report_agree_on_every_row(case):
    comparison = synthetic_comparison(**CASES[case])
    html, text = page(comparison), shown(**CASES[case])
    assert comparison.summary
    for row in comparison.summary:
        words = reading(row).words
        assert f"{row.label} {words} " in text
        cell = re.search(rf"{re.escape(row.label)}<small>.*?</th>", html, re.DOTALL)
        assert f">{words}</span>" in cell[0]
    silent = [row for row in comparison.summary if reading(row).words == "Tells nothing"]
    assert bool(silent) == (case == "silent")


@pytest.mark.parametrize("case", CASES)
def test_json_holds_what_the_table_holds(case, capsys):
    comparison = synthetic_comparison(**CASES[case])
    print_json(as_json(comparison, "report.html"))
    document = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [row["words"] for row in document["summary"]] == [
        reading(row).words for row in comparison.summary
    ]
    assert document["headline"] == comparison.verdict.headline
    assert document["advice"][0]["command"] == "sigmoid-attention compare --seeds 9 --resume"
