"""The launches of a public call: their arguments give the definition's output in the emulator.

The output is correct only if every argument is. The emulator therefore computes it from the
recorded arguments, and it must equal the definition, rounded once.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim, I units of
queries.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.attention.impl.experimental.gluon import ops
from tests.support.cpu.oracle import in_float64
from tests.support.gluon import kernels, planned, ptx
from tests.support.gluon.launches import Launch, launched
from tests.support.triton import interpreter

Plan = Callable[..., Tensor | None]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def qkvo(batch: int, heads: int, key_heads: int, queries: int, keys: int, dim: int = 64):
    """Query, key, value, and the gradient of the output."""
    shapes = (heads, queries), (key_heads, keys), (key_heads, keys), (heads, queries)
    return tuple(normal(batch, *shape, dim, seed=seed) for seed, shape in enumerate(shapes))


def laid_out() -> tuple[Tensor, ...]:
    """Tokens before heads, keys shared by broadcasting, rows at odd addresses, a sum's gradient."""
    return (
        normal(2, 140, 4, 64).transpose(1, 2),
        normal(2, 1, 150, 64, seed=1).expand(2, 2, 150, 64),
        normal(2, 2, 150, 72, seed=2)[..., 1:65],
        normal(1, 1, 1, 1, seed=3).expand(2, 4, 140, 64),
    )


def one_of_each() -> tuple[Tensor, ...]:
    """A single element along each dimension, whose strides mean nothing and are odd."""
    return tuple(tensor.as_strided((1, 1, 1, 64), (3, 5, 7, 1)) for tensor in qkvo(1, 1, 1, 1, 1))


@dataclass
class Case:
    """Tensors and arguments of a call on a GPU of so many multiprocessors."""

    tensors: tuple[Tensor, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    processors: int = 2

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    def run(self, positional, **changes) -> Tensor:
        return sigmoid_attention(*positional, **self.arguments | changes, enable_gqa=True)

    def differentiated(self, positional, on_out: Tensor, **changes) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in positional]
        out = self.run(leaves, **changes)
        return out.detach(), *torch.autograd.grad(out, leaves, on_out)

    def exact(self, visited: Tensor | None = None) -> tuple[Tensor, ...]:
        """The definition in float64 and its gradients, with ``visited`` of those pairs alone."""
        *positional, on_out = (tensor.double() for tensor in self.tensors)
        wide = {name: in_float64(value) for name, value in self.arguments.items()}
        return self.differentiated(positional, on_out, **wide, impl="reference", attn_mask=visited)


BIAS_H, BIAS_BH = normal(1, 4, 1, 1).float() - 3, normal(2, 2, 1, 1).double() - 3
SLOPES_H, SLOPES_BH = torch.tensor([0.5, 0.03]), torch.tensor([[0.2, 0.01], [-0.01, 0.6]])

CASES = {
    "fewer-items-than-programs": Case(qkvo(1, 2, 2, 150, 200), {"bias": -2.0}, processors=132),
    "one-pair": Case(one_of_each()),
    "whole-tiles": Case(qkvo(1, 2, 1, 384, 256), {"bias": -3.0}, processors=1),
    "causal-batches-of-groups": Case(qkvo(2, 4, 2, 300, 300), {"is_causal": True}, processors=3),
    "queries-that-see-nothing": Case(
        qkvo(1, 4, 2, 300, 60), {"bias": BIAS_H, "is_causal": True, "scale": -0.3}
    ),
    "window-slopes-of-heads-D128": Case(
        qkvo(1, 2, 1, 190, 300, 128),
        {"bias": -2.0, "window_size": (90, 20), "alibi_slopes": SLOPES_H},
    ),
    "bias-and-slopes-of-batches": Case(
        qkvo(2, 2, 1, 130, 130), {"bias": BIAS_BH, "alibi_slopes": SLOPES_BH}
    ),
    "bias-of-batches-window-left": Case(
        qkvo(2, 2, 2, 200, 170, 128), {"bias": BIAS_BH[:, :1], "window_size": (33, -1)}
    ),
    "bias-of-all-window-right": Case(
        qkvo(1, 2, 1, 140, 260), {"bias": torch.tensor(-2.5), "window_size": (-1, 5)}
    ),
    "memory-laid-out-otherwise": Case(laid_out(), {"bias": -2.0, "is_causal": True}),
}
PLANNED = {
    "causal": Case(
        qkvo(1, 2, 1, 1060, 1060),
        {"bias": -9.0, "is_causal": True, "alibi_slopes": SLOPES_H},
        processors=3,
    ),
    "bias-of-batches": Case(
        qkvo(2, 2, 2, 140, 1024),
        {"bias": BIAS_BH - 6, "alibi_slopes": SLOPES_BH.abs(), "window_size": (-1, 70)},
    ),
}


@pytest.fixture(scope="module")
def plan() -> Iterator[Plan]:
    """The plan's own kernels, in the Python that interprets them."""
    with interpreter.start() as pool:
        yield lambda *arguments: pool.submit(planned.spans, *arguments).result()


def check_arguments(launches: list[Launch], names: list[str], processors: int) -> None:
    """What the compiler's tests take for granted is what Triton finds in the arguments."""
    assert [each.kernel.fn.__name__ for each in launches] == names
    for each in launches:
        arguments = each.given
        dtype = "fp16" if arguments["query"].base.dtype == torch.float16 else "bf16"
        listed = arguments["work"] is not None
        assert each.signature() == kernels.signature(arguments["CONFIG"], dtype, listed)
        assert each.grid == (min(processors, arguments["items"]),)
        assert not listed or arguments["work"].shape[0] == arguments["items"]


def check_values(actual, expected, slack: float = 1e-6) -> None:
    """Rounded once; ``slack`` in units of the largest, for fp32 and the tail's form."""
    for value, exact in zip(actual, expected, strict=True):
        unit = torch.finfo(value.dtype).eps / 2
        allowed = unit * exact.abs() + slack * exact.abs().max()
        assert value.shape == exact.shape
        # What is not a number is not within any bound.
        assert ((value - exact).abs() <= allowed).all()


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_the_definitions_rounded_once(name):
    case = CASES[name]
    *positional, on_out = case.tensors
    with launched(case.processors) as launches:
        actual = case.differentiated(positional, on_out, impl="gluon")
    check_arguments(launches, ["forward", "backward"], case.processors)
    check_values(actual, case.exact())


def tiles(launch: Launch) -> int:
    work = launch.given["work"]
    return int((work[..., 8] - work[..., 3]).sum())


def visited(spans: Tensor, queries: int, keys: int) -> Tensor:
    """Pairs (B, H, Q, K) in the units that a plan has left."""
    first, _, _, end = spans[..., torch.arange(queries) // 128].unsqueeze(-1)
    unit_K = torch.arange(keys) // 128
    return (first <= unit_K) & (unit_K < end)


@pytest.mark.parametrize("name", PLANNED)
def test_planned_calls_visit_what_the_plan_has_left(plan: Plan, name):
    case = PLANNED[name]
    *positional, on_out = case.tensors
    spans = []

    def seen(of_keys: bool, *arguments):
        spans.append(plan(of_keys, *arguments))
        return spans[-1]

    with launched(case.processors, seen) as launches:
        actual = case.differentiated(positional, on_out, impl="gluon")
    check_arguments(launches, ["forward", "backward"], case.processors)
    query, key, value = (tensor.double() for tensor in positional)
    left = visited(spans[0], query.shape[2], key.shape[2])
    identity = torch.eye(key.shape[2]).to(key).expand(*key.shape[:3], -1)
    weights = case.run((query, key, identity), impl="reference", attn_mask=left)
    assert not left.all()
    for each in launches:
        assert each.given["CONFIG"].tails
        assert tiles(each) == max_pool2d((weights > 0).float(), 128, ceil_mode=True).sum()
    check_values(actual, case.exact(left), slack=1e-4)
    # Both the rounding and what is left out are in units of what the row keeps.
    out = case.exact()[0]
    mass = case.run((query, key, torch.full_like(value, value.abs().max())), impl="reference")
    unit = torch.finfo(case.dtype).eps / 2
    assert ((actual[0] - out).abs() <= unit * (out.abs() + mass)).all()


@pytest.mark.parametrize("name", ["bias-and-slopes-of-batches", "causal"])
def test_half_precision_keeps_the_digits_of_small_weights(plan: Plan, name):
    case = (CASES | PLANNED)[name]
    positional = [tensor.half() for tensor in case.tensors[:3]]
    arguments = {"bias": -16.0, "skip_tolerance": 0.0}
    processors = case.processors
    with launched(processors, plan) as launches, ptx.rounding(), torch.no_grad():
        actual = case.run(positional, **arguments, impl="gluon")
    check_arguments(launches, ["forward"], processors)
    wide = [tensor.double() for tensor in positional]
    size = case.run((*wide[:2], wide[2].abs()), **arguments, impl="reference")
    exact = case.run(wide, **arguments, impl="reference")
    info = torch.finfo(torch.float16)
    allowed = info.eps * size + info.smallest_normal * info.eps
    assert ((actual - exact).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("needed", "dtype", "in_order"),
    [
        ((True, False, False), torch.bfloat16, False),
        ((False, False, True), torch.bfloat16, False),
        ((False, False, False), torch.float16, False),
        ((False, False, False), torch.bfloat16, True),
    ],
    ids=["bias", "slopes", "half", "in-order"],
)
def test_other_gradients_are_the_portable_kernels(needed, dtype, in_order):
    query, key, value, on_out = (tensor.to(dtype) for tensor in qkvo(1, 2, 2, 8, 8))
    arguments = (on_out, *needed, query, key, value, None, None, None, None, (), ())
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(in_order)
    try:
        with mock.patch.object(ops, "OPERATORS") as operators:
            actual = ops._backward(*arguments)
    finally:
        torch.use_deterministic_algorithms(before)
    operators.triton_backward.assert_called_once_with(*arguments)
    assert actual is operators.triton_backward.return_value
