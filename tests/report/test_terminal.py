"""The comparison in the terminal: what stands in its table, and what below it."""

import io

import pytest
from rich.console import Console

from sigmoid_attention.cli.compare import show
from tests.report.synthetic_comparison import NO_KERNEL, synthetic_comparison


def shown(**case) -> str:
    console = Console(file=io.StringIO())
    show(synthetic_comparison(**case), console)
    return " ".join(console.file.getvalue().split())


def test_the_table_ends_with_what_the_fused_operator_gains():
    text = shown()
    places = [
        text.index(part)
        for part in (
            "softmax sigmoid sigmoid against softmax reading",
            "Training step 215 ms 234 ms 1.090× (1.084 to 1.096) Softmax cheaper",
            "sigmoid, fused or not unfused fused fused against unfused reading",
            "Training step 384 ms 234 ms 0.610× (0.606 to 0.615) Fused faster",
            "Operator forward + backward, 4096 tokens 611 ms 154 ms",
            "Sigmoid attention ran in the fused C++ kernel (vector path avx512).",
            "Synthetic: stay with softmax",
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
def test_without_times_nothing_is_said_of_it(without):
    assert "fused" not in shown(without=without)
