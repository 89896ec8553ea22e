"""A selection from a suite holds each matching case exactly once."""

import pytest

from benchmarks.operations import OPERATIONS, Case, flops
from benchmarks.peers import PEERS
from benchmarks.suites import CPU, Choice, chosen


def test_one_shape_can_be_chosen():
    choice = Choice(
        only=("forward",), dtypes=("bf16",), lengths=(1024,), dims=(64,), peers=("sdpa", "ours")
    )
    tasks = chosen(CPU, choice)
    assert [task.case for task in tasks] == [
        Case("forward", "bf16", 1024, mask="full"),
        Case("forward", "bf16", 1024, mask="causal"),
    ]
    assert all(task.peers == ("sdpa", "ours") for task in tasks)


def test_each_case_comes_once_with_known_names():
    tasks = chosen(CPU, Choice(long=True))
    assert len({task.case for task in tasks}) == len(tasks)
    for task in tasks:
        baseline = OPERATIONS[task.case.operation].baseline
        assert set(task.peers) <= set(PEERS)
        assert baseline is None or baseline in task.peers


def test_long_cases_run_only_with_their_option():
    assert not any(task.case.operation == "headline" for task in chosen(CPU, Choice()))
    assert chosen(CPU, Choice(long=True))[-1].case.length == 65536


def test_quick_has_every_operation_at_a_small_shape():
    tasks = chosen(CPU, Choice(quick=True, long=True))
    of_accelerators = {"backward", "alibi-backward", "copy", "error"}
    assert {task.case.operation for task in tasks} == set(OPERATIONS) - of_accelerators
    assert all(flops(task.case) < 1e10 for task in tasks)


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (Choice(only=("backward",)), "--only must be of gemm, forward, .*, got backward"),
        (Choice(lengths=(1000,)), "--length must be of 1024, .*, got 1000"),
        (Choice(peers=("flash",)), "--peers must be of .*sdpa.*, got flash"),
        (Choice(only=("decode",), lengths=(1024,)), "no case of the suite"),
        (Choice(only=("gemm",), peers=("ours",)), "no case of the suite"),
    ],
    ids=["operation", "length", "peer", "length-of-another", "peer-of-another"],
)
def test_what_there_is_not_is_refused(choice, sentence):
    with pytest.raises(ValueError, match=sentence):
        chosen(CPU, choice)


def test_flops_count_what_is_visible():
    full, causal = (Case("forward", "fp32", 4, dim=8, mask=mask) for mask in ("full", "causal"))
    assert flops(full) == 2 * 2 * 8 * 16 * 8
    assert flops(causal) == 2 * 2 * 8 * 10 * 8
    assert flops(Case("forward+backward", "fp32", 4, dim=8)) == 3.5 * flops(full)
    # The one query of a decoding step stands on the last key.
    assert flops(Case("decode", "fp32", 4, dim=8, mask="causal")) == 2 * 2 * 8 * 4 * 8
    assert flops(Case("gemm", "fp32", 4)) == 2 * 64
