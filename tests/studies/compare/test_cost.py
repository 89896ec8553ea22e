"""The measurement of cost: the order of turns, and the arms that are timed."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.lab.rows import ARMS, SIGMOID, SOFTMAX
from sigmoid_attention.studies.compare.cost import SHORTEST_SECONDS, _stepper, by_turns, run_cost
from sigmoid_attention.studies.compare.implementation import Operator
from sigmoid_attention.studies.compare.results import UNFUSED
from sigmoid_attention.studies.compare.settings import compare_setting
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.text import Text

CPU = torch.device("cpu")
SETTING = compare_setting("tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 120)
    return Text.prepare(load_corpus(str(path)), SETTING.text.model.vocab_size, 2048)


@pytest.mark.parametrize(
    ("arms", "expected"),
    [("ab", "ab ba ab"), ("abc", "abc bca cab")],
    ids=["two arms", "three arms"],
)
def test_another_arm_begins_each_round_and_short_work_is_repeated(arms, expected):
    calls = []
    work = {arm: lambda arm=arm: calls.append(arm) or torch.ones(3000).sort() for arm in arms}
    rows = list(by_turns(work, rounds=3, device=CPU))
    assert [(row.arm, row.step) for row in rows] == [
        (arm, turn) for turn, round_ in enumerate(expected.split()) for arm in round_
    ]
    assert all(0 < row.value < SHORTEST_SECONDS for row in rows)
    assert len(calls) > 3 * len(rows)


@pytest.mark.parametrize(
    ("operator", "timed"),
    [
        pytest.param(Operator("avx2", "a kernel"), (*ARMS, UNFUSED), id="kernel"),
        pytest.param(Operator("", "no kernel"), ARMS, id="no kernel", marks=pytest.mark.slow),
    ],
)
def test_the_unfused_arm_takes_turns_only_beside_a_fused_one(text, operator, timed):
    shares = []
    rows = list(run_cost(SETTING, text, CPU, operator, shares.append))
    rounds, lengths = SETTING.cost.rounds, SETTING.cost.lengths
    taken = Counter((row.metric, row.arm, row.length) for row in rows)
    assert taken == {
        **{("step_seconds", arm, -1): rounds for arm in timed},
        **{
            (f"operator_{part}_seconds", arm, length): rounds
            for part in ("forward", "training")
            for arm in timed
            for length in lengths
        },
        **{("peak_memory_bytes", arm, -1): 1 for arm in ARMS},
        **{("operator_peak_bytes", arm, length): 1 for arm in ARMS for length in lengths},
    }
    assert all(row.value > 0 for row in rows)
    assert shares == sorted(shares) and shares[-1] == 1


class Called(TorchDispatchMode):
    """The names of all operations under it."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("arm", [SOFTMAX, SIGMOID, UNFUSED])
def test_only_the_sigmoid_arm_steps_with_the_kernel(text, arm):
    step = _stepper(SETTING, text, arm, CPU)
    with Called() as called:
        step()
    operators = {name for name in called.names if name.startswith("sigmoid_attention::")}
    kernel = {"sigmoid_attention::cpu_forward", "sigmoid_attention::cpu_backward"}
    # The means of centred keys; the arm without the kernel differs in attention alone.
    means = {"sigmoid_attention::cpu_mean_products", "sigmoid_attention::cpu_mean_gradients"}
    expected = {SOFTMAX: set(), SIGMOID: kernel | means, UNFUSED: means}[arm]
    assert operators == (expected if loaded() else set())
