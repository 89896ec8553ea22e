"""The timed calls and the device clock, which a test replaces."""

import gc
import math
import sys
import types
import warnings
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import peers, plan, speed
from benchmarks.gpu.automatic import tried_by_auto
from benchmarks.gpu.peers import PEERS, clear_tuning, ready, sigmoid
from benchmarks.gpu.speed import inputs, measure_speed
from benchmarks.gpu.stopwatch import MOST_CALLS, captured, gpu_stopwatch
from benchmarks.operations import LARGEST_LOGIT, Case, flops, work
from benchmarks.timing import Budget, Seconds
from sigmoid_attention.attention import call_cache, dispatch

CPU = torch.device("cpu")
FORWARD = Case("forward", "fp32", 33, dim=16, mask="causal", heads=3, batch=2)
ONCE = Budget(seconds=0, least=2, least_short=2, most=2)


class Device:
    """A queue whose clock runs on while its work is done, and a host that only queues."""

    def __init__(self):
        self.clock, self.host, self.calls = 0.0, 0.0, []

    def work(self, name, seconds, queueing=0.0):
        def queue():
            self.clock += seconds
            self.host += queueing
            self.calls.append(name)
            return ()

        return queue

    def event(self):
        device = self

        class Event:
            def record(self):
                self.at = device.clock

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return 1e3 * (other.at - self.at)

        return Event()

    def watch(self, work, cool=None):
        busy = self.work("busy", 0.001)
        return gpu_stopwatch(cool, self.event, lambda: self.host, busy)(work)


def test_a_turn_gives_the_device_s_and_the_host_s_time_of_a_call():
    device = Device()
    actual = device.watch(device.work("a", 0.004, queueing=0.001))
    assert actual == Seconds(pytest.approx(0.004), pytest.approx(0.001))
    # One to see how long it takes, three to fill the turn; neither begins on an idle device.
    assert device.calls == ["busy", "a", "busy", "a", "a", "a"]


def test_short_calls_fill_the_queue_and_not_more():
    device = Device()
    assert device.watch(device.work("a", 1e-7)).wall == pytest.approx(1e-7)
    assert device.calls.count("a") == 1 + MOST_CALLS


def test_cooling_comes_before_every_call_and_is_not_timed():
    device = Device()
    actual = device.watch(device.work("a", 0.004), device.work("cool", 1.0))
    assert actual.wall == pytest.approx(0.004)
    assert device.calls == ["cool", "a"] * 4


class Graph:
    """A device that captures and replays nothing."""

    def __init__(self, monkeypatch):
        self.streams, self.replayed = [], 0
        stream = types.SimpleNamespace(wait_stream=self.streams.append)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: stream)
        for name in ("stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, lambda of: nullcontext())

    def replay(self):
        self.replayed += 1


def test_tensors_of_a_graph_live_as_long_as_the_graph(monkeypatch):
    graph, seen = Graph(monkeypatch), []

    def make():
        lengths = torch.ones(3)

        def work():
            answer = lengths * 2
            seen.append(weakref.ref(answer))
            return answer

        seen.append(weakref.ref(lengths))
        return captured(work)

    replay = make()
    gc.collect()
    lengths, warm_up, answer = seen
    assert lengths() is not None and answer() is not None and warm_up() is None
    assert replay() is answer() and graph.replayed == 1
    # The side stream waits for what was queued before, and the graph for it.
    assert len(graph.streams) == 2


def test_caches_are_cooled_by_reading(monkeypatch):
    monkeypatch.setattr(speed, "COLD_BYTES", 64)
    cool = speed._cooling(CPU)
    with FunctionNames() as called:
        cool()
    # Nothing of the store is written, or it would be written back while the step is timed.
    assert called.names == ["aten::amax"]


class FunctionNames(TorchDispatchMode):
    """The operations that torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_torch_s_lack_of_a_kernel_is_a_refusal_and_other_errors_are_not(monkeypatch):
    attend = peers.sdpa("CUDNN_ATTENTION")(FORWARD, CPU)
    for message, kind in (("No available kernel.", NotImplementedError), ("lost", RuntimeError)):
        error = RuntimeError(message)
        monkeypatch.setattr(
            peers.F, "scaled_dot_product_attention", lambda *_, own=error, **__: raised(own)
        )
        with pytest.raises(kind) as caught:
            attend(*[torch.ones(1)] * 3)
        assert caught.type is kind


def raised(error):
    raise error


def test_every_peer_has_its_row_and_its_turn(monkeypatch):
    monkeypatch.setattr(speed, "tried_by_auto", lambda *_: ("gluon", "triton"))
    monkeypatch.setitem(PEERS, "gluon", lambda case, device: 1 / 0)
    monkeypatch.setitem(PEERS, "triton", lambda case, device: lambda q, k, v: q)
    monkeypatch.setitem(PEERS, "sdpa-flash", lambda case, device: lambda q, k, v: q)
    heard = []
    turns = iter(range(1, 9))
    watch = lambda compute: Seconds(float(next(turns)), 0.5)  # noqa: E731
    rows = list(
        measure_speed(
            FORWARD, ("gluon", "triton", "sdpa-flash"), CPU, heard.append, (), watch, ONCE
        )
    )
    refused, first, second = rows
    assert refused.refused == "ZeroDivisionError: division by zero" and refused.wall == ()
    assert (first.peer, first.wall, first.cpu, first.threads) == (
        "triton",
        (1.0, 4.0),
        (0.5, 0.5),
        0,
    )
    assert (second.peer, second.wall) == ("sdpa-flash", (2.0, 3.0))
    assert [row.stamp.get("auto") for row in rows] == [("gluon", "triton")] * 2 + [None]
    assert second.stamp["beside"] == {"triton": 2.5}
    prepared, timed = heard[:3], heard[3:]
    assert prepared == ["gluon", "triton", "sdpa-flash"]
    assert timed == ["triton", "sdpa-flash", "sdpa-flash", "triton"]


@pytest.mark.slow
def test_a_peer_beside_takes_turns_and_has_no_row(monkeypatch):
    for peer, attend in (("gluon", 0), ("triton", 1), ("flex-sigmoid", 1)):
        make = (lambda case, device: lambda q, k, v: q) if attend else (lambda *_: 1 / 0)
        monkeypatch.setitem(PEERS, peer, make)
    heard: list[str] = []
    turns = iter((1.0, 5.0, 7.0, 3.0))
    watch = lambda compute: Seconds(next(turns), 0.5)  # noqa: E731
    (row,) = measure_speed(
        FORWARD, ("flex-sigmoid",), CPU, lambda peer: None, ("gluon", "triton"), watch, ONCE
    )
    assert (row.peer, row.wall, row.stamp) == (
        "flex-sigmoid", (1.0, 3.0), {"beside": {"triton": 6.0}},
    )  # fmt: skip
    # Without a peer nothing is timed.
    (row,) = measure_speed(FORWARD, ("gluon",), CPU, heard.append, ("triton",), watch, ONCE)
    assert row.refused and heard == ["gluon"]


def test_the_order_of_auto_is_read_without_a_call(monkeypatch):
    def tried(operation: str = "forward") -> tuple[str, ...]:
        case = replace(FORWARD, operation=operation)
        return tried_by_auto(case, inputs(case, CPU), CPU)

    monkeypatch.setattr(call_cache, "_prepared", {})
    assert tried() == ("cpu",)
    assert not call_cache._prepared
    # A prepared call searches no implementation; this question does.
    tensors = inputs(FORWARD, CPU)
    sigmoid("auto")(FORWARD, CPU)(tensors.query, tensors.key, tensors.value)
    assert call_cache._prepared and tried() == ("cpu",)
    monkeypatch.setattr(dispatch, "fused_kernels", lambda query: "triton")
    assert tried() == tried("backward") == ("triton",)
    assert tried_by_auto(DECODE, inputs(DECODE, CPU), CPU) == ("triton",)


def test_backward_alone_is_the_gradients_of_one_forward():
    case = replace(FORWARD, operation="backward")
    tensors, calls = inputs(case, CPU), []

    def attend(query, key, value):
        calls.append(1)
        return query * key.sum() * value

    compute = work(case, tensors, attend)
    first, again = compute(), compute()
    assert calls == [1] and len(first) == 3
    for left, right in zip(first, again, strict=True):
        assert torch.equal(left, right)
    torch.testing.assert_close(first[0], tensors.upstream * tensors.key.sum() * tensors.value)
    assert flops(case) == 2.5 * flops(FORWARD)


def test_alibi_cases_bound_their_logits():
    case = Case("alibi-forward", "bf16", 200, 64, "causal", heads=2)
    tensors = inputs(case, CPU)
    logits = tensors.query.float() @ tensors.key.float().mT / math.sqrt(64)
    assert LARGEST_LOGIT / 4 < logits.abs().max() <= LARGEST_LOGIT * 1.01
    norms = tensors.query.float().norm(dim=-1) * tensors.key.float().norm(dim=-1)
    torch.testing.assert_close(norms / 8, torch.full_like(norms, 8.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("operation", ["forward", "decode", "copy", "gemm"])
def test_tensors_have_the_stated_layout(operation):
    case = Case(operation, "bf16", 32, 16, heads=4, batch=2, key_heads=2)
    tensors = inputs(case, CPU)
    if operation == "forward":
        case = replace(case, key_heads=0)
        assert inputs(case, CPU).key.transpose(1, 2).is_contiguous()
    elif operation == "decode":
        assert tensors.query.shape == (2, 4, 1, 16) and tensors.key.shape == (2, 2, 32, 16)
    elif operation == "copy":
        assert tensors.query.shape == tensors.key.shape == (32,)
        out = ready("copy", case, CPU)(tensors.query.fill_(3.0), tensors.key, tensors.value)
        assert (out == 3.0).all() and (tensors.key == 3.0).all()
    else:
        out = ready("mm", case, CPU)(tensors.query, tensors.key, tensors.value)
        assert torch.equal(out, tensors.query @ tensors.key)


# Peers --------------------------------------------------------------------------------------------


def weights(case: Case, tensors, softmax: bool):
    query, key = tensors.query.double(), tensors.key.double()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.mT / case.dim**0.5
    if case.is_causal and case.queries > 1:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1) if softmax else (scores - math.log(case.length)).sigmoid()


def assert_computes(peer: str, case: Case, *, softmax: bool) -> None:
    tensors = inputs(case, CPU)
    out = ready(peer, case, CPU)(tensors.query, tensors.key, tensors.value)
    value = tensors.value.double().repeat_interleave(case.heads // tensors.value.shape[1], 1)
    torch.testing.assert_close(
        out.double(), weights(case, tensors, softmax) @ value, atol=1e-5, rtol=1e-4
    )


DECODE = Case("decode", "fp32", 40, 16, heads=4, batch=2, key_heads=2)


@pytest.mark.parametrize("case", [FORWARD, replace(FORWARD, mask="full"), DECODE], ids=str)
def test_ours_compute_what_they_say(case, monkeypatch):
    monkeypatch.setitem(PEERS, "triton", peers.sigmoid("cpu"))
    assert_computes("triton", case, softmax=False)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_flex_is_a_sigmoid_by_its_log(mask, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    forgotten = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(1))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled, once a process
        assert_computes("flex-sigmoid", replace(FORWARD, mask=mask, heads=1), softmax=False)
        # Else the ninth case would run uncompiled, without a message.
        assert forgotten == [1] and torch._dynamo.config.fail_on_recompile_limit_hit


def test_pages_hold_every_key_once(monkeypatch):
    case = Case("decode", "fp32", 32, 16, heads=2, batch=2, key_heads=1, feature="paged 8")
    call = {}
    tensors = inputs(case, CPU)
    attend = peers.sigmoid("cpu")(case, CPU)
    monkeypatch.setattr(
        peers, "sigmoid_decode", lambda *arguments, **named: call.update(tensors=arguments, **named)
    )
    attend(tensors.query, tensors.key, tensors.value)
    assert call["block_table"].flatten().sort().values.tolist() == list(range(8))
    assert call["tensors"][1].shape == (8, 8, 1, 16)
    assert call["tensors"][1].flatten().sort().values.equal(tensors.key.flatten().sort().values)


def installed(monkeypatch, name: str, **functions) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def by_token(softmax: bool):
    """A package's function, which takes (B, N, H, D) and computes what it says."""

    def attend(query, key, value, causal=False, sigmoid_bias=0.0, **_):
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        case = replace(FORWARD, mask="causal" if causal else "full")
        tensors = types.SimpleNamespace(query=query, key=key, value=value)
        out = weights(case, tensors, softmax) @ value.double()
        return out.to(query.dtype).transpose(1, 2)

    return attend


def test_packages_by_token_are_called_in_their_layout(monkeypatch):
    installed(monkeypatch, "flash_attn", flash_attn_func=by_token(softmax=True))
    third = by_token(softmax=True)
    installed(
        monkeypatch, "flash_attn_interface", flash_attn_func=lambda *x, **y: (third(*x, **y), None)
    )
    installed(monkeypatch, "flash_sigmoid", flash_attn_func=by_token(softmax=False))
    sigmoid = by_token(softmax=False)
    installed(
        monkeypatch,
        "triton_sigmoid",
        sigmoid_attention=lambda q, k, v, causal, sigmoid_bias: sigmoid(q, k, v, causal),
    )
    for peer in ("flash-attn-2", "flash-attn-3"):
        assert_computes(peer, FORWARD, softmax=True)
    for peer in ("flash-sigmoid", "triton-sigmoid"):
        assert_computes(peer, FORWARD, softmax=False)
    with pytest.raises(NotImplementedError, match="triton-sigmoid has no decoding"):
        ready("triton-sigmoid", DECODE, CPU)
    with pytest.raises(NotImplementedError, match="triton-sigmoid has no ALiBi"):
        ready("triton-sigmoid", replace(FORWARD, operation="alibi-forward"), CPU)


def test_choices_of_triton_sigmoid_are_forgotten(monkeypatch):
    clear_tuning()  # where it is not installed
    tuned = types.SimpleNamespace(configs=[1], cache={"key": 1})
    installed(monkeypatch, "triton_sigmoid.sigmoid_triton_dense", kernel=tuned, other={"a": 1})
    clear_tuning()
    assert tuned.cache == {} and sys.modules["triton_sigmoid.sigmoid_triton_dense"].other


def test_a_peer_that_is_not_installed_is_named():
    rows = list(measure_speed(FORWARD, ("flash-attn-3",), CPU, lambda peer: None, (), None, ONCE))
    assert rows[0].refused == "ModuleNotFoundError: No module named 'flash_attn_interface'"


def test_every_peer_of_the_plan_is_known():
    for unit in plan.units():
        assert set(unit.peers) <= set(PEERS), unit
    assert speed.BUDGET.least >= 5
