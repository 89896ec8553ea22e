"""Random calls of the fused operator between protected memory pages, each from a numbered seed.

Sizes lie around the kernel's blocks and at zero. A call is made once with its gradients, twice
without them, as a graph, or on several threads. Half of the calls return the mass, too. A call must
not read outside of its tensors, must not write to them, and must give the results of the reference.
`make sanitize` also checks the kernel's own working memory.
"""

import random
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sigmoid_attention.attention import (
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from tests.support.attention.cached import Cached
from tests.support.attention.calls import BIAS_SHAPES, MASK_SHAPES, Call
from tests.support.attention.mass import joined
from tests.support.attention.packed import Packed
from tests.support.cpu.calls import DTYPES, FAR_WINDOWS
from tests.support.cpu.guarded import Fence
from tests.support.cpu.oracle import Named, differentiated, exactly, in_float64, is_real
from tests.support.cpu.threads import threads

pytestmark = [
    pytest.mark.usefixtures("kernel"),
    pytest.mark.skipif(sys.platform == "win32", reason="pages are forbidden by mprotect"),
]

LENGTHS = (0, 1, 1, 2, 5, 6, 7, 17, 48, 49, 65, 97, 127, 128, 129, 193, 257)
DIMS = (0, 1, 2, 7, 8, 16, 17, 33, 64, 65, 100)
BIASES = ("-2.5", "-8", "visible", *(f"tensor {letters}" for letters in BIAS_SHAPES))
MASKS = [f"{kind} {letters}" for kind in ("bool", "float", "hiding") for letters in MASK_SHAPES]
# Whether rounding stays small is asked elsewhere. Here a wrong number is one from another place.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# What a table may hold where no token is.
JUNK = (-1, 10**9, -(2**31), 2**31 - 1)


class Case:
    """A call, all of whose tensors lie between forbidden pages."""

    def __init__(self, number: int) -> None:
        self.chance = chance = random.Random(number)
        self.dtype = chance.choice(DTYPES)
        self.fence = Fence(chance)
        self.call = Call(
            batch=chance.choice((0, 1, 1, 2, 3)),
            key_heads=chance.choice((1, 1, 2)),
            group=chance.choice((1, 1, 2, 8)),
            queries=chance.choice(LENGTHS),
            keys=chance.choice(LENGTHS),
            head_dim=chance.choice(DIMS),
            value_dim=chance.choice(DIMS),
            bias=chance.choice(BIASES),
            slopes=chance.choice((None, None, "H", "BH")),
            is_causal=chance.random() < 0.5,
            window_size=chance.choice(((-1, -1), *FAR_WINDOWS)),
            softcap=chance.choice((None, None, 5.0)),
            scale=chance.choice((0.3, -0.4)),
            seed=number,
        )
        makers = {"dense": self.dense, "packed": self.packed, "cached": self.cached}
        self.kind = chance.choice(("dense", "dense", "packed", "cached", "paged"))
        self.function, positional, arguments = makers.get(self.kind, self.paged)()
        place = self.fence.place
        self.positional = tuple(place(x) if isinstance(x, Tensor) else x for x in positional)
        self.arguments = {
            name: place(x) if isinstance(x, Tensor) else x for name, x in arguments.items()
        }
        self.arguments["skip_tolerance"] = 0.0
        if number // 3 % 2:
            self.function = joined(self.function)

    def dense(self) -> tuple[Callable[..., Tensor], tuple, dict]:
        mask = self.chance.choice((None, self.chance.choice(MASKS)))
        return sigmoid_attention, *self.call.but(mask=mask).build(self.dtype)

    def packed(self) -> tuple[Callable[..., Tensor], tuple, dict]:
        chance, count = self.chance, self.chance.choice((1, 2, 3, 5))
        lengths_q = [chance.choice(LENGTHS[:12]) for _ in range(count)]
        lengths_k = lengths_q if chance.random() < 0.5 else chance.choices(LENGTHS[:15], k=count)
        pack = Packed(tuple(lengths_q), tuple(lengths_k), chance.choice((0, 0, 1, 99)), self.call)
        index = chance.choice((torch.int32, torch.int64))
        return sigmoid_varlen_attention, *pack.build(self.dtype, index)

    def cached(self, page_size: int = 0) -> tuple[Callable[..., Tensor], tuple, dict]:
        chance, keys = self.chance, self.call.keys
        used = [chance.choice((0, keys, keys // 2, min(1, keys))) for _ in range(self.call.batch)]
        queries = chance.choice((0, 1, 1, 2, 4, self.call.queries))
        cache = Cached(tuple(used), page_size, self.call.but(queries=queries))
        index = chance.choice((torch.int32, torch.int64))
        (query, key, value), arguments = cache.build(self.dtype, index)
        if page_size:
            table = arguments["block_table"]
            for row, length in zip(table, used, strict=True):
                row[-(-length // page_size) :] = chance.choice(JUNK)
        else:
            for side in (key, value):
                for row, length in zip(side, used, strict=True):
                    row[:, length:] = torch.nan
        return sigmoid_decode, (query, key, value), arguments

    def paged(self) -> tuple[Callable[..., Tensor], tuple, dict]:
        self.call = self.call.but(batch=max(self.call.batch, 1), keys=max(self.call.keys, 1))
        return self.cached(self.chance.choice((1, 3, 16, 100)))

    def fused(self, *positional, **arguments) -> Tensor:
        return self.function(*positional, **arguments, impl="cpu")

    def value(self) -> Tensor:
        with torch.no_grad():
            return self.fused(*self.positional, **self.arguments)

    def exact_value(self) -> Tensor:
        wide = [in_float64(x) for x in self.positional]
        others = {name: in_float64(x) for name, x in self.arguments.items()}
        return self.function(*wide, **others, impl="reference")

    def assert_right(self, found: Named, exact: Named) -> None:
        for name, expected in exact.items():
            largest = expected.abs().max().item() if expected.numel() else 0.0
            error = (found[name].double() - expected).abs()
            right = error <= TOLERANCES[self.dtype] * max(largest, 1.0)
            assert right.all(), f"{name}: errs by {error.max()} where {largest} is the largest"

    def once(self) -> None:
        if self.kind == "paged":
            return self.twice()
        found = differentiated(self.fused, self.positional, self.arguments)
        exact = exactly(self.function, self.positional, self.arguments)
        self.assert_right(found, exact)

    def twice(self) -> None:
        first = self.value()
        torch.testing.assert_close(self.value(), first, rtol=0, atol=0, equal_nan=True)
        self.assert_right({"out": first}, {"out": self.exact_value()})

    def as_a_graph(self) -> None:
        torch._dynamo.reset()
        graph = torch.compile(self.fused, backend="eager", fullgraph=True)
        with torch.no_grad():
            out = graph(*self.positional, **self.arguments)
        self.assert_right({"out": out}, {"out": self.exact_value()})

    def on_threads(self) -> None:
        with threads(self.chance.choice((2, 3, 5))):
            self.once()


def run(numbers: range, *ways: Callable[[Case], None]) -> None:
    for number in numbers:
        case = Case(number)
        way = ways[number % len(ways)]
        try:
            way(case)
            assert case.fence.untouched(), "a tensor of the call was written to"
        except Exception as error:
            sizes = [tuple(x.shape) for x in case.positional if is_real(x)]
            error.add_note(f"case {number}, {way.__name__}: {case.kind} {sizes} {case.call}")
            raise


EAGER = (Case.once, Case.twice, Case.on_threads)


@pytest.mark.parametrize("first", range(0, 160, 40))
def test_calls_stay_inside_their_tensors(first):
    run(range(first, first + 40), *EAGER)


def test_graphs_stay_inside_their_tensors():
    run(range(6), Case.as_a_graph)


@pytest.mark.slow
@pytest.mark.one_path
@pytest.mark.parametrize("first", range(1000, 6000, 500))
def test_many_calls_stay_inside_their_tensors(first):
    run(range(first, first + 500), *EAGER)


@pytest.mark.slow
@pytest.mark.one_path
def test_many_graphs_stay_inside_their_tensors():
    run(range(1000, 1200), Case.as_a_graph)


@pytest.mark.parametrize(
    "calls", [150, pytest.param(20_000, marks=(pytest.mark.slow, pytest.mark.one_path))]
)
def test_numbers_that_another_thread_changes_lead_nowhere(calls):
    """It writes valid lengths, ends and pages without a pause: any answer, but of these tensors."""
    query, key = torch.rand(4, 2, 1, 16), torch.rand(4, 2, 4096, 16)
    tokens, pages = torch.rand(256, 2, 16), torch.rand(9, 16, 2, 16)
    used, ends, table = torch.full((4,), 4096), torch.tensor([0, 9, 256]), torch.arange(8)[None]
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for length in (1, 4096, 777):
                used.fill_(length)
                ends[1].fill_(length % 257)
                table.fill_(length % 9)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(calls):
            outs = [
                sigmoid_decode(query, key, key, seqused_k=used, bias=-12.0, is_causal=True),
                sigmoid_varlen_attention(tokens, tokens, tokens, ends, ends, 256, 256, bias=-12.0),
                sigmoid_decode(
                    query[:1], pages, pages, seqused_k=used[:1].clamp(max=128), block_table=table,
                    bias=-12.0, is_causal=True),
            ]  # fmt: skip
            for out in outs:
                assert ((out >= 0) & (out < 5)).all()
    finally:
        done.set()
        changing.join()
