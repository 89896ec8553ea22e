"""Decoding on a GPU: values in the interpreter, dispatch rules, and compiler output.

The interpreter truncates bf16 where a GPU rounds, so the budget there is twice as wide.
"""

import math
import sys
from unittest import mock

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from sigmoid_attention.attention import index_tensors, sigmoid_decode
from sigmoid_attention.attention.impl.triton import decode as kernels
from sigmoid_attention.attention.impl.triton import decode_ops
from sigmoid_attention.attention.impl.triton.decode_ops import (
    block_keys,
    block_rows,
    key_parts,
)
from tests.support.attention.calls import Call
from tests.support.attention.cross_compile import Compiled, cross_compile
from tests.support.cpu.budgets import normal
from tests.support.cpu.cache import Cache
from tests.support.cpu.oracle import LEAST_WEIGHT, ROUNDINGS, in_float64
from tests.support.triton.interpreter import Blocks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BUDGETS = ROUNDINGS | {torch.bfloat16: 2 * ROUNDINGS[torch.bfloat16]}
CALL = Call(
    batch=1, key_heads=2, group=3, queries=1, keys=0, head_dim=16, value_dim=16, is_causal=True
)
CALLS = {
    "one-query-H6-G2-D16": CALL,
    "not-causal-H2-G2": CALL.but(group=1, queries=3, is_causal=False),
    "five-queries-H16-G2-D20-E31": CALL.but(queries=5, group=8, head_dim=20, value_dim=31),
    "rows-of-two-blocks-H40-G1": CALL.but(queries=2, key_heads=1, group=40),
    "window-left-three-queries": CALL.but(queries=3, window_size=(20, 0)),
    "window-right-three-queries": CALL.but(queries=3, window_size=(-1, 1), is_causal=False),
    "window-of-one": CALL.but(queries=3, window_size=(0, 0)),
    "window-without-ends": CALL.but(queries=3, window_size=(2**31 - 1, sys.maxsize)),
    "slopes-of-heads": CALL.but(queries=2, slopes="H"),
    "softcap": CALL.but(softcap=0.7),
    "softcap-wide": CALL.but(softcap=30.0, scale=-0.4),
    "bias-of-heads": CALL.but(bias="tensor H11"),
    "bias-of-rows": CALL.but(queries=4, bias="tensor BHQ1"),
    "bias-of-keys": CALL.but(bias="tensor 111K"),
    "bias-of-pairs-shared": CALL.but(queries=2, bias="tensor QK"),
    "bias-of-visible-keys": CALL.but(queries=2, bias="visible"),
    "all-terms": CALL.but(queries=4, bias="tensor BHQK", slopes="BH", softcap=0.9),
}
USED = (70, 0, 33)
PARTS = 3


def decoded(tensors: tuple[Tensor, ...], arguments: dict, count: int = PARTS) -> Tensor:
    """The answer in so many parts, of blocks of 16 keys, from a cache whose values are not read."""
    unread = mock.patch.object(index_tensors, "cached", None)
    parts = mock.patch.object(decode_ops, "key_parts", lambda *_: count)
    small = mock.patch.object(decode_ops, "block_keys", lambda *_: 16)
    device = mock.patch("sigmoid_attention.attention.decode.values_are_readable", lambda *_: False)
    with parts, small, device, unread:
        return sigmoid_decode(*tensors, **arguments, impl="triton")


def assert_right(tensors: tuple[Tensor, ...], arguments: dict, actual: Tensor) -> None:
    dtype = tensors[0].dtype
    query, key, value = (tensor.double() for tensor in tensors)
    wide = {name: in_float64(argument) for name, argument in arguments.items()}
    exact = sigmoid_decode(query, key, value, **wide, impl="reference")
    size = sigmoid_decode(query, key, value.abs(), **wide, impl="reference")
    budget = BUDGETS[dtype] * torch.finfo(dtype).eps / 2 * (size + LEAST_WEIGHT)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert actual.dtype == dtype and actual.shape == exact.shape
    wrong = ~((actual.double() - exact).abs() <= budget + smallest)
    assert not wrong.any(), (actual[wrong][0], exact[wrong][0], wrong.nonzero()[0])


def check(interpreted, cache: Cache, dtype: torch.dtype, count: int = PARTS) -> None:
    tensors, arguments = cache.build(dtype)
    assert_right(tensors, arguments, interpreted(decoded, Blocks(), tensors, arguments, count))


@pytest.mark.parametrize("page_size", [0, 7], ids=["contiguous", "pages-7"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_the_definition_beside_unwritten_memory(interpreted, call, page_size):
    check(interpreted, Cache(USED, page_size, "tokens", call), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("page_size", [0, 16], ids=["contiguous", "pages-16"])
@pytest.mark.parametrize(
    "name", [pytest.param("five-queries-H16-G2-D20-E31", marks=pytest.mark.slow), "all-terms"]
)
def test_equals_the_definition_in_half_precision(interpreted, name, page_size, dtype):
    check(interpreted, Cache(USED, page_size, "heads", CALLS[name]), dtype)


def test_numbers_of_numpy_are_numbers(interpreted):
    tensors, arguments = Cache(USED, 0, "tokens", CALL).build(torch.float32)
    settings = {"scale": np.float32(0.25), "softcap": np.float32(2.0), "bias": np.float64(-1.5)}
    actual = interpreted(decoded, Blocks(), tensors, arguments | settings)
    plain = {name: float(number) for name, number in settings.items()}
    assert_right(tensors, arguments | plain, actual)


@pytest.mark.parametrize("count", [1, 2, 20], ids=lambda count: f"S{count}")
def test_any_number_of_parts_adds_up(interpreted, count):
    check(
        interpreted, Cache(USED, 0, "fused", CALLS["window-left-three-queries"]), DTYPES[0], count
    )


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_lengths_and_tables_may_be_strided_and_hold_anything_beyond_the_tokens(interpreted, index):
    (query, key, value), arguments = Cache((33, 70), 16, "heads", CALL).build(torch.float32)
    table = arguments["block_table"].clone()
    table[0, 3:] = 10**6
    used = arguments["seqused_k"]
    spread = {
        "block_table": torch.stack((table, table), 2).to(index)[:, :, 0],
        "seqused_k": torch.stack((used, used), 1).to(index)[:, 0],
    }
    actual = interpreted(decoded, Blocks(), (query, key, value), arguments | spread)
    assert_right((query, key, value), arguments, actual)


def test_a_length_beyond_the_capacity_counts_as_the_capacity(interpreted):
    (query, key, value), arguments = Cache((30, 30), 0, "heads", CALL).build(torch.float32)
    key, value = key[:, :, :30], value[:, :, :30]
    actual = interpreted(
        decoded, Blocks(), (query, key, value), arguments | {"seqused_k": torch.tensor([31, -1])}
    )
    as_it_counts = arguments | {"seqused_k": torch.tensor([30, 0])}
    assert_right((query, key, value), as_it_counts, actual)
    assert not actual[1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_keys_that_all_queries_have_passed_are_not_read(interpreted, dtype):
    """A cache may have given their memory away."""
    call = CALL.but(queries=3, window_size=(20, 0))
    (query, *caches), arguments = Cache((70,), 0, "heads", call).build(dtype)
    passed = torch.arange(caches[0].shape[2])[:, None] < 70 - 3 - 20
    lost = [cache.masked_fill(passed, math.nan) for cache in caches]
    before, after = (
        interpreted(decoded, Blocks(), (query, *tensors), arguments) for tensors in (caches, lost)
    )
    assert torch.equal(before, after)


# Reach ----------------------------------------------------------------------------------------


def reaching(tolerance, softcap: float = 2.0, bias: float = -3.0):
    """A long cache, of which heads with steep slopes see little, and the arguments."""
    query = normal(1, 2, 1, 16).float()
    key, value = (normal(1, 1, 300, 16, seed=seed).float() for seed in (1, 2))
    slopes = torch.tensor([0.5, 0.25])
    return (query, key, value), {
        "bias": bias, "alibi_slopes": slopes, "softcap": softcap, "enable_gqa": True,
        "seqused_k": torch.tensor([300]), "skip_tolerance": tolerance, "is_causal": True,
    }  # fmt: skip


def read_from(interpreted, tensors, arguments) -> int:
    """The first key that is read: all keys before it may be NaN."""
    query, key, value = tensors
    nan = torch.isnan(
        torch.stack(
            [
                interpreted(
                    decoded,
                    Blocks(),
                    (query, key.masked_fill(torch.arange(300)[:, None] == n, math.nan), value),
                    arguments,
                )
                for n in range(0, 300, 20)
            ]
        )
    )
    return int(nan.flatten(1).any(1).nonzero()[0]) * 20


@pytest.mark.parametrize("tolerance", ["rounding", 1e-2], ids=str)
def test_a_softcap_ends_what_slopes_let_a_row_reach(interpreted, tolerance):
    tensors, arguments = reaching(tolerance)
    actual = interpreted(decoded, Blocks(), tensors, arguments)
    exact = sigmoid_decode(
        *(tensor.double() for tensor in tensors), **arguments | {"impl": "reference"}
    )
    error = (actual.double() - exact).abs().max() / tensors[2].abs().max()
    assert error <= (1e-6 if tolerance == "rounding" else tolerance)
    first = read_from(interpreted, tensors, arguments)
    # By the formula, for the less steep of the slopes, and a step of 20 keys.
    unit = 2.0**-24 / (1 + math.exp(3 + 2)) if tolerance == "rounding" else tolerance
    beyond = (2 - 3 - math.log1p(-math.exp(-0.25)) - math.log(unit)) / 0.25
    assert abs(first - (299 - beyond)) <= 22


@pytest.mark.parametrize(
    "changes",
    [
        {"skip_tolerance": 0.0},
        {"softcap": None},
        {"alibi_slopes": torch.tensor([0.5, 0.0])},
        {"alibi_slopes": torch.tensor([0.5, -0.1])},
        {"bias": normal(300).float().view(1, 1, 1, -1)},
        {"bias": torch.tensor([[[-3.0]], [[math.nan]]])},
    ],
    ids=["no-tolerance", "no-softcap", "a-flat-slope", "a-negative-slope", "by-key", "nan"],
)
def test_keys_without_a_proof_are_read(interpreted, changes):
    (query, key, value), arguments = reaching(1e-2)
    far = key.clone()
    far[:, :, 0] = math.nan
    out = interpreted(decoded, Blocks(), (query, far, value), arguments | changes)
    assert out.isnan().any()


# What it refuses, and how it is called ----------------------------------------------------------


def refusals() -> list[str]:
    """What the kernel says to what it cannot do."""

    def said(query=None, dim=8, value_dim=8, dtype=torch.float32, **options) -> str:
        query = torch.zeros(1, 2, query or 1, dim, dtype=dtype)
        key = torch.zeros(1, 2, 5, dim, dtype=dtype, requires_grad=options.pop("learns", False))
        value = torch.zeros(1, 2, 5, value_dim, dtype=dtype)
        problem = {}
        with mock.patch(
            "sigmoid_attention.attention.dispatch.run", lambda own, *_: problem.update(own=own)
        ):
            sigmoid_decode(
                query, key, value, seqused_k=torch.tensor([5]), bias=0.0, impl="x", is_causal=True
            )
        try:
            decode_ops.attend(problem["own"])
        except NotImplementedError as refusal:
            return str(refusal)
        return "accepted"

    return [
        said(),
        said(query=17),
        said(dim=257),
        said(value_dim=257),
        said(dtype=torch.float64),
        said(learns=True),
    ]


def test_unsupported_options_are_refused_by_name(interpreted):
    accepted, *refused = interpreted(refusals, Blocks())
    assert accepted == "accepted"
    for sentence, word in zip(
        refused, ("16 queries", "256", "256", "float64", "gradients"), strict=True
    ):
        assert word in sentence
    assert "need an NVIDIA GPU" in refusals()[0]


def compiled_once(tensors: tuple[Tensor, ...], arguments: dict) -> tuple[Tensor, Tensor, int]:
    """Eager and in one graph, and the graphs that two lengths of the cache take."""

    def function(query, key, value, used):
        return sigmoid_decode(query, key, value, **arguments | {"seqused_k": used}, impl="triton")

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    graph = torch.compile(function, fullgraph=True, backend=counter)
    used = arguments["seqused_k"]
    with torch.no_grad():
        graph(*tensors, used - 1)
        return function(*tensors, used), graph(*tensors, used), counter.frame_count


@pytest.mark.parametrize("page_size", [0, 4], ids=["contiguous", "pages-4"])
def test_compiles_into_one_graph_for_all_lengths(interpreted, page_size):
    tensors, arguments = Cache((9, 5), page_size, "heads", CALL).build(torch.float32)
    eager, graph, frames = interpreted(compiled_once, Blocks(), tensors, arguments)
    assert torch.equal(eager, graph)
    assert frames == 1


def launches(used: tuple[int, ...]) -> list[tuple]:
    """Grids and shapes of a call that is not carried out, by its lengths."""
    seen = []

    def note(kernel, programs, *tensors, **constants):
        seen.append((programs, sorted(constants.items())))

    query, key = torch.zeros(len(used), 4, 1, 8), torch.zeros(len(used), 2, 300, 8)
    with mock.patch.object(decode_ops, "launch", note):
        sigmoid_decode(
            query, key, key, seqused_k=torch.tensor(used, dtype=torch.int64), bias=0.0,
            enable_gqa=True, impl="triton", is_causal=True)  # fmt: skip
    return seen


def test_the_launch_does_not_depend_on_the_lengths(interpreted):
    long, short = (interpreted(launches, Blocks(), used) for used in ((300, 300), (0, 7)))
    assert long == short and long
    assert interpreted(launches, Blocks(), ()) == []


def looks_at_nothing() -> Tensor:
    """Lengths that cannot be read, as those on a GPU in a captured graph."""
    query, key = torch.zeros(2, 1, 1, 8), torch.zeros(2, 1, 9, 8)
    used = torch.tensor([9, 4])
    with mock.patch.object(Tensor, "tolist", None), mock.patch.object(Tensor, "item", None):
        return decoded((query, key, key), {"seqused_k": used, "bias": 0.0, "is_causal": True})


def test_lengths_on_a_gpu_are_never_waited_for(interpreted):
    assert interpreted(looks_at_nothing, Blocks()).shape == (2, 1, 1, 8)


# Rules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 8, 40, 66, 320, 512, 2048])
@pytest.mark.parametrize("keys", [1, 500, 4096, 32768])
def test_no_number_of_parts_would_take_less_by_the_stated_rule(units, keys):
    blocks, resident = -(-keys // 64), 2 * 132

    def cost(count: int) -> int:
        return math.ceil(units * count / resident) * (math.ceil(blocks / count) + 2)

    chosen = key_parts(units, keys, 64, 132)
    assert cost(chosen) == min(cost(count) for count in range(1, min(blocks, 256) + 1))
    assert all(cost(count) > cost(chosen) for count in range(1, chosen))


def test_parts_keep_all_multiprocessors_busy():
    """Of an H200: with 32k keys and 8 key heads, at any batch."""
    for batch in (1, 2, 4, 8, 16, 32, 64):
        units, blocks = 8 * batch, 32768 // 64
        count = key_parts(units, 32768, 64, 132)
        rounds, each = math.ceil(units * count / 264), math.ceil(blocks / count)
        assert units * blocks / (264 * rounds * each) > 0.9, batch


def test_nothing_to_read_is_one_part():
    assert key_parts(8, 0, 64, 132) == key_parts(0, 100, 64, 132) == 1


@pytest.mark.parametrize(
    "head_dim, value_dim, itemsize, keys",
    [(64, 64, 2, 128), (128, 128, 2, 64), (80, 64, 2, 64), (256, 64, 2, 32), (16, 16, 2, 128),
     (256, 256, 4, 16), (128, 64, 4, 32)],
)  # fmt: skip
def test_a_block_of_keys_fills_16_kib(head_dim, value_dim, itemsize, keys):
    assert block_keys(head_dim, value_dim, itemsize) == keys


@pytest.mark.parametrize(
    "rows, value_dim, dtype, block",
    [(1, 64, torch.bfloat16, 16), (17, 64, torch.bfloat16, 32), (300, 128, torch.float16, 64),
     (64, 256, torch.bfloat16, 32), (300, 64, torch.float32, 16)],
)  # fmt: skip
def test_a_block_of_rows_sums_up_in_registers(rows, value_dim, dtype, block):
    assert block_rows(rows, value_dim, dtype) == block


# Machine code -----------------------------------------------------------------------------------


def compiled(
    dim: int,
    rows: int,
    *,
    dtype: str = "bf16",
    page: int = 0,
    slopes: bool = False,
    softcap: bool = False,
    sizes: tuple[str, str, str] = ("i32",) * 3,
) -> Compiled:
    """The kernel as it is launched for so many heads of one query that share a key head."""
    kernel = kernels.attend_part
    places = {name: place for place, name in enumerate(kernel.arg_names)}
    strides = {"query": 4, "key": 4, "value": 4, "out": 5, "used": 1}
    pointers = dict.fromkeys(("query", "key", "value"), f"*{dtype}")
    pointers |= {"out": "*fp32", "used": "*i32"}
    if page:
        strides["table"], pointers["table"] = 2, "*i32"
    if slopes:
        strides["slopes"], pointers["slopes"] = 2, "*fp32"
    signature: dict = {
        name: (pointers[name], *["i32"] * (count - 1), "constexpr")
        for name, count in strides.items()
    }
    signature |= {"sizes": sizes, "numbers": ("fp32",) * 4}
    itemsize = 4 if dtype == "fp32" else 2
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    constants = {
        "GROUP": rows, "QUERIES": 1, "D": dim, "E": dim, "LEFT": -1, "RIGHT": 0, "PAGE": page,
        "BIAS_BY_KEY": False, "HAS_SOFTCAP": softcap, "HAS_REACH": slopes and softcap,
        "RELATIVE": True, "BLOCK_M": block_rows(rows, dim, torch_dtype),
        "BLOCK_N": block_keys(dim, dim, itemsize), "BLOCK_D": dim, "BLOCK_E": dim, "SHIFT": 0,
    }  # fmt: skip
    constants |= {
        name: None for name in ("mass", "table", "bias", "slopes") if name not in signature
    }
    by_place = {(places[name],): value for name, value in constants.items()}
    by_place |= {(places[name], count): 1 for name, count in strides.items()}
    by_place |= {(places["sizes"], i): 1 for i, kind in enumerate(sizes) if kind == "constexpr"}
    aligned = [
        (places[name], inner)
        for name in ("query", "key", "value", "out")
        for inner in range(strides[name])
    ]
    stages = decode_ops.PAGED_STAGES if page else decode_ops.STAGES
    return cross_compile(
        kernel, signature, by_place, aligned=aligned, num_warps=4, num_stages=stages
    )


SHARED_BYTES = 227 * 1024
REGISTERS = 64 * 1024


@pytest.mark.budgets
@pytest.mark.parametrize(
    "dim, rows, options",
    [
        (64, 1, {}),
        (128, 8, {}),
        (128, 8, {"page": 16}),
        (256, 8, {}),
        (128, 8, {"slopes": True, "softcap": True}),
        (128, 4, {"dtype": "fp32"}),
    ],
    ids=["D64", "D128-H8", "D128-H8-pages", "D256-H8", "D128-all-terms", "D128-fp32"],
)
def test_machine_code_keeps_to_what_the_rule_for_parts_assumes(dim, rows, options):
    """Two programs a multiprocessor, whose keys and values come past the registers, in 16 bytes."""
    code = compiled(dim, rows, **options)
    assert code.spills == code.stack == 0
    resident = decode_ops.RESIDENT
    assert resident * code.shared <= SHARED_BYTES
    assert resident * code.registers * 128 <= REGISTERS
    (loop,) = code.inner("LDGSTS.E.BYPASS.128")
    tile = 2 * decode_ops.BLOCK_BYTES  # keys and values
    assert loop.count("LDGSTS.E.BYPASS.128") == tile // (16 * 128)
    # At 4 instructions a clock, a multiprocessor of 132 must take in 4.8 TB/s at 1.5 GHz.
    clocks = len(loop) * 4 / 4
    if options.get("dtype") != "fp32":
        assert tile / clocks >= 2 * 4.8e12 / 132 / 1.5e9


@pytest.mark.budgets
def test_sizes_of_one_which_triton_builds_in_compile_as_well():
    """A launch turns every 1 among its numbers into a constant."""
    code = compiled(64, 1, sizes=("constexpr", "i32", "constexpr"))
    assert code.spills == 0


@pytest.mark.budgets
def test_rows_of_many_heads_take_the_wide_products_of_hopper():
    code = compiled(128, 64)
    assert code.spills == 0
    assert [loop.count("HGMMA") > 0 for loop in code.inner("HGMMA")] == [True]
