"""The fused operator on several threads: thread counts, equal bits, and concurrent calls.

On Linux with libgomp, torch's own operators hang in a forked child, because the child lacks the
parent's threads. With one thread, which torch's data loaders set in their workers, they work, and
so does this operator.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sigmoid_attention.attention import call_cache, sigmoid_attention, sigmoid_varlen_attention
from sigmoid_attention.attention.impl.cpu import library, ops
from sigmoid_attention.attention.impl.cpu.abi import BLOCK_KEYS, BLOCK_QUERIES, loaded
from sigmoid_attention.attention.problem import Problem
from tests.support.attention.calls import Call
from tests.support.attention.packed import Packed
from tests.support.cpu.calls import PLAIN, assert_right, each_dtype, fused
from tests.support.cpu.oracle import differentiated
from tests.support.cpu.threads import in_a_process, threads

pytestmark = pytest.mark.usefixtures("kernel")

THREADS = (1, 2, 3, 5, 8)


@pytest.mark.parametrize("count", THREADS[1:])
@pytest.mark.parametrize("heads", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1024, 4096])
def test_a_batch_of_one_occupies_all_threads(length, heads, count, monkeypatch):
    """No thread is left without work while another has more than a fair share and one piece."""
    seen = []
    forward = ops.compute
    monkeypatch.setattr(ops, "compute", lambda *given: seen.append(given[-2]) or forward(*given))
    # A prepared call would not pass through it.
    monkeypatch.setattr(call_cache, "call_key", lambda *_, **__: None)
    query = torch.zeros(1, heads, length, 1)
    with threads(count):
        fused(query, query, query, bias=0.0)
    block = seen[0][5]
    assert block in (BLOCK_QUERIES, BLOCK_QUERIES // 2, BLOCK_QUERIES // 4)
    blocks = heads * -(-length // block)
    assert blocks >= min(4 * count, heads * length // (BLOCK_QUERIES // 4))
    splits = ops.key_splits(heads, count, length)
    units = heads * splits
    assert 1 <= splits <= -(-length // BLOCK_KEYS)
    busy = units / (math.ceil(units / count) * count)
    assert units >= count
    assert busy == 1 or units >= 4 * count


def test_work_is_cut_no_finer_than_threads_need():
    for units in (1, 2, 3, 16, 100):
        assert ops.key_splits(units, 1, 4096) == 1
    for count in THREADS:
        assert ops.key_splits(count, count, 4096) == 1
        assert ops.key_splits(3 * count, count, 4096) == 1
        assert ops.key_splits(1, count, BLOCK_KEYS) == 1
        assert ops.key_splits(1, count, 0) == 1
    problem = Problem(
        *(torch.zeros(4, 8, 1024, 1),) * 3, 1.0, None, 0.0, None, None, (-1, -1), 0.0, 0.0, False
    )  # fmt: skip
    with threads(2):
        assert ops._block_queries(problem) == BLOCK_QUERIES


TALL = PLAIN.but(key_heads=1, queries=700, keys=650, head_dim=16, value_dim=16)
CALLS = {
    "one-head": TALL,
    "one-head-causal-slopes": TALL.but(slopes="H", is_causal=True),
    "one-bias-of-pairs-for-all-heads": TALL.but(batch=2, key_heads=2, bias="tensor QK"),
    "a-bias-of-pairs-for-each-head": TALL.but(key_heads=3, bias="tensor BHQK"),
    "a-bias-for-each-key-and-a-mask-for-each-row": TALL.but(
        key_heads=2, bias="tensor 111K", mask="float 1HQ1"
    ),
    "shared-keys": TALL.but(key_heads=1, group=3, slopes="H"),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@each_call
@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_threads_is_right(call: Call, count):
    tensors, arguments = call.build(torch.float32)
    with threads(count):
        assert_right(tensors, arguments, torch.float32)


@each_dtype
@each_call
def test_the_same_threads_give_the_same_bits(call: Call, dtype):
    tensors, arguments = call.build(dtype)
    for count in (1, 3):
        with threads(count):
            first = differentiated(fused, tensors, arguments)
            for _ in range(2):
                again = differentiated(fused, tensors, arguments)
                for name, expected in first.items():
                    assert torch.equal(again[name], expected), (name, count)


def test_packed_sequences_on_several_threads_are_the_same_each_time():
    pack = Packed((300, 0, 7, 129), (300, 5, 7, 200), 0, Call(1, 1, 2, 1, 1, 16, 8, slopes="H"))
    positional, arguments = pack.build(torch.float32)

    def operation(*positional, **arguments):
        return sigmoid_varlen_attention(*positional, **arguments, impl="cpu")

    with threads(3):
        first, again = (differentiated(operation, positional, arguments) for _ in range(2))
    alone = differentiated(operation, positional, arguments)
    for name, expected in first.items():
        assert torch.equal(again[name], expected), name
        torch.testing.assert_close(alone[name], expected)


def test_calls_from_several_python_threads_do_not_disturb_each_other():
    calls = [
        call.but(seed=seed, queries=queries).build(dtype)
        for seed, call in enumerate(CALLS.values())
        for queries in (33, 700)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    expected = [differentiated(fused, *call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for round_of_calls in range(2):
            found = pool.map(lambda call: _one_thread(*call), calls)
            for actual, right in zip(found, expected, strict=True):
                for name, part in right.items():
                    assert torch.equal(actual[name], part), (name, round_of_calls)


def _one_thread(tensors, arguments):
    # A fresh thread has as many of torch's beside it as the machine has cores.
    torch.set_num_threads(1)
    return differentiated(fused, tensors, arguments)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to count threads")
def test_no_thread_is_started_beside_torchs_and_a_forked_process_goes_on_with_one():
    before, after, *sums = in_a_process(
        """
        import os, torch
        torch.set_num_threads(3)
        leaf = torch.ones(700, 700, requires_grad=True)
        (leaf @ leaf + 1).sum().backward()
        before = len(os.listdir("/proc/self/task"))
        from sigmoid_attention import sigmoid_attention
        q = torch.randn(1, 1, 2000, 32, requires_grad=True)

        def compute():
            out = sigmoid_attention(q, q, q, is_causal=True, impl="cpu")
            grad, = torch.autograd.grad(out.square().sum(), q)
            return float(out.detach().double().sum()), float(grad.double().sum())

        compute()
        print(before, len(os.listdir("/proc/self/task")), flush=True)
        child = os.fork()
        torch.set_num_threads(1)
        assert child == 0 or os.waitpid(child, 0)[1] == 0
        print(*compute(), flush=True)
        if child == 0:
            os._exit(0)
        """
    ).split()
    assert before == after
    assert sums[:2] == sums[2:]


def test_a_kernel_first_used_by_several_threads_at_once_is_loaded_once(monkeypatch):
    monkeypatch.setattr(library, "_choices", {})
    opened = []
    unwatched = library._open
    monkeypatch.setattr(library, "_open", lambda *built: opened.append(1) or unwatched(*built))
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(lambda _: loaded(), range(8)))
    assert all(kernel is kernels[0] for kernel in kernels)
    assert len(opened) == 1


def test_auto_on_several_threads_takes_the_kernel_too():
    tensors, arguments = TALL.build(torch.float32)
    with threads(3):
        assert torch.equal(sigmoid_attention(*tensors, **arguments), fused(*tensors, **arguments))
