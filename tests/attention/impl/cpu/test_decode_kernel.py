"""The decode kernel: few queries against many keys, read from the cache without a copy.

Sizes lie around the kernel's own: 128 keys a block, panels of 64, 16 or 8 of them, reads of 32, 16,
8 or 4 elements, rows in batches of 8, 4 or 2.
"""

import ctypes
import math
import mmap
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sigmoid_attention.attention import sigmoid_decode
from sigmoid_attention.attention.impl.cpu import ops
from tests.support.attention.calls import BIAS_SHAPES, Call, masks
from tests.support.cpu.budgets import Inputs, eager, error, floor, normal, weights
from tests.support.cpu.cache import SPARE, Cache
from tests.support.cpu.calls import FAR_WINDOWS, LAYOUTS, assert_right, laid_out
from tests.support.cpu.oracle import LEAST_WEIGHT, ROUNDINGS, in_float64
from tests.support.examples import examples

pytestmark = pytest.mark.usefixtures("kernel")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEYS = (0, 1, 5, 127, 128, 129, 1000)
DIMS = (1, 3, 31, 64, 80, 128, 256)
PAGES = (0, 1, 7, 16, 128)
BIASES = ("-2.5", "visible", "effective", *(f"tensor {letters}" for letters in BIAS_SHAPES))

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@st.composite
def few_queries(draw, keys) -> Call:
    return Call(
        batch=1,
        key_heads=draw(st.integers(1, 2)),
        group=draw(st.sampled_from((1, 3, 8))),
        queries=draw(st.integers(1, 5)),
        keys=draw(keys),
        head_dim=draw(st.sampled_from(DIMS)),
        value_dim=draw(st.sampled_from(DIMS)),
        bias=draw(st.sampled_from(BIASES)),
        slopes=draw(st.sampled_from((None, "H", "BH"))),
        is_causal=draw(st.booleans()),
        window_size=draw(st.sampled_from(FAR_WINDOWS)),
        softcap=draw(st.sampled_from((None, 0.7, 5.0))),
        scale=draw(st.sampled_from((None, -0.1))),
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def written_caches(draw) -> Cache:
    used = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2))
    page_size = draw(st.sampled_from(PAGES))
    layout = draw(st.sampled_from(("heads", "tokens", "fused", "offset")))
    return Cache(tuple(used), page_size, layout, draw(few_queries(st.just(0))))


def assert_right_from_cache(tensors: tuple[Tensor, ...], arguments: dict) -> None:
    dtype = tensors[0].dtype
    actual = sigmoid_decode(*tensors, **arguments, impl="cpu")
    query, key, value = (tensor.double() for tensor in tensors)
    wide = {name: in_float64(argument) for name, argument in arguments.items()}
    exact = sigmoid_decode(query, key, value, **wide, impl="reference")
    size = sigmoid_decode(query, key, value.abs(), **wide, impl="reference")
    budget = ROUNDINGS[dtype] * torch.finfo(dtype).eps / 2 * (size + LEAST_WEIGHT)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert actual.dtype == dtype and actual.shape == exact.shape
    wrong = ~((actual.double() - exact).abs() <= budget + smallest)
    assert not wrong.any(), (actual[wrong][0], exact[wrong][0], wrong.nonzero()[0])


@each_dtype
@settings(max_examples=examples(60))
@given(cache=written_caches())
def test_equals_the_reference_on_a_cache(dtype, cache: Cache):
    assert_right_from_cache(*cache.build(dtype))


MANY = Call(
    batch=1, key_heads=2, group=3, queries=1, keys=0, head_dim=64, value_dim=64, is_causal=True
)
CALLS = {
    "one-query-H6-G2-D64": MANY,
    "one-query-H64-G1-D16": MANY.but(key_heads=1, group=64, head_dim=16, value_dim=16),
    "five-queries-H16-G2-D80-E31": MANY.but(queries=5, group=8, head_dim=80, value_dim=31),
    "twenty-queries-H2-G2-D65": MANY.but(queries=20, group=1, head_dim=65),
    "window-130-five-queries": MANY.but(queries=5, window_size=(130, -1)),
    "all-terms": MANY.but(queries=4, bias="tensor BHQK", slopes="BH", softcap=0.9),
}


@each_dtype
@pytest.mark.parametrize("page_size", PAGES, ids=lambda size: f"pages-{size}")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_page_size(call: Call, page_size: int, dtype):
    assert_right_from_cache(*Cache((1000, 0, 129), page_size, "tokens", call).build(dtype))


@each_dtype
@pytest.mark.parametrize("left", [0, 100, 1023, 1100])
def test_leaves_keys_that_all_queries_have_passed_alone(left: int, dtype):
    """A cache may have given their memory away."""
    call = MANY.but(queries=3, window_size=(left, 0))
    (query, *caches), arguments = Cache((2000,), 0, "heads", call).build(dtype)
    passed = torch.arange(caches[0].shape[2])[:, None] < 2000 - 3 - left
    lost = [cache.masked_fill(passed, math.nan) for cache in caches]
    expected = sigmoid_decode(query, *caches, **arguments, impl="cpu")
    assert torch.equal(sigmoid_decode(query, *lost, **arguments, impl="cpu"), expected)


@each_dtype
@settings(max_examples=examples(40))
@given(
    call=few_queries(st.sampled_from(KEYS)),
    mask=masks(),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
)
def test_gradients_equal_the_reference(dtype, call: Call, mask, layouts):
    tensors, arguments = call.but(mask=mask, group=min(call.group, 3)).build(dtype)
    assert_right(tuple(map(laid_out, tensors, layouts)), arguments, dtype)


def visits(queries: int, heads: int, key_heads: int) -> Tensor:
    """Of a call in which nearly all keys are too far away to matter: (B, H, I)."""
    query, key = normal(1, heads, queries, 8).float(), normal(1, key_heads, 1024, 8).float()
    slopes = torch.full((heads,), 3.0)
    sizes, numbers = (queries, 1024, 0, -1, 0, 48, 1), (0.3, 0.0, -2.0, 2.0**-24)
    visited = ops.forward(query, key, key, None, None, slopes, None, None, sizes, numbers)[1]
    return visited[:, :, : -(-queries // 48)]


@pytest.mark.parametrize(
    "queries, heads, key_heads", [(1, 8, 8), (1, 64, 1), (4, 8, 1), (5, 4, 2), (24, 2, 2)]
)
def test_few_queries_visit_all_keys_rather_than_measure_them(queries, heads, key_heads):
    assert (visits(queries, heads, key_heads) == 1024 // 128).all()


@pytest.mark.parametrize("queries, heads, key_heads", [(32, 2, 2), (48, 8, 1)])
def test_more_queries_go_to_the_forward_pass(queries, heads, key_heads):
    assert (visits(queries, heads, key_heads) < 1024 // 128).all()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@each_dtype
@pytest.mark.parametrize(
    "used", [(9000,), (4000, 3, 0, 1100)], ids=["one-sequence", "unequal-sequences"]
)
def test_neither_threads_nor_neighbours_change_a_bit(used, dtype, threads):
    call = MANY.but(key_heads=1, queries=2, window_size=(3500, 0))
    tensors, arguments = Cache(used, 0, "tokens", call).build(dtype)
    assert_right_from_cache(tensors, arguments)
    first = sigmoid_decode(*tensors, **arguments, impl="cpu")
    for count in (1, 2, 3):
        threads(count)
        for _ in range(10):
            assert torch.equal(sigmoid_decode(*tensors, **arguments, impl="cpu"), first)
    for s in range(len(used)):
        alone = arguments | {"seqused_k": arguments["seqused_k"][s : s + 1]}
        single = sigmoid_decode(*(tensor[s : s + 1] for tensor in tensors), **alone, impl="cpu")
        assert torch.equal(single, first[s : s + 1])


def before_a_wall(tensor: Tensor) -> Tensor:
    """A copy whose last element is the last one of the memory that may be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = tensor.numel() * tensor.element_size()
    readable = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, readable + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    wall = ctypes.c_void_p(start + readable)
    assert libc.mprotect(wall, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0, ctypes.get_errno()
    flat = torch.frombuffer(
        memory, dtype=tensor.dtype, count=tensor.numel(), offset=readable - size
    )
    return flat.view(tensor.shape).copy_(tensor)


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory by Linux's mprotect")
@each_dtype
@pytest.mark.parametrize("page_size", [0, 7], ids=["contiguous", "paged"])
@pytest.mark.parametrize("head_dim, value_dim", [(64, 64), (31, 80), (80, 1), (1, 33)])
def test_reads_no_element_past_the_last(head_dim, value_dim, page_size, dtype):
    call = MANY.but(key_heads=1, head_dim=head_dim, value_dim=value_dim)
    for used in (1, 129, 196):
        # Whole pages: the last token of one of them ends at the wall.
        cache = Cache((used - SPARE,) if used > SPARE else (used,), page_size, "heads", call)
        (query, *caches), arguments = cache.build(dtype)
        if page_size:
            last = caches[0].shape[0] - 1
            place = arguments["block_table"].flatten().tolist().index(last)
            arguments["seqused_k"][0] = (place + 1) * page_size
            caches = [stored.nan_to_num(0.5) for stored in caches]
        else:
            caches = [stored[:, :, : int(arguments["seqused_k"][0])] for stored in caches]
        assert_right_from_cache((query, *map(before_a_wall, caches)), arguments)


def decoded(inputs: Inputs) -> Tensor:
    used = torch.full((inputs.query.shape[0],), inputs.key.shape[2])
    return sigmoid_decode(
        inputs.query,
        inputs.key,
        inputs.value,
        seqused_k=used,
        bias=inputs.constant,
        skip_tolerance=0.0,
        impl="cpu",
        is_causal=True,
    )


@pytest.mark.parametrize("head_dim", [64, 128], ids=lambda dim: f"D{dim}")
@pytest.mark.parametrize("constant", [-12.0, -math.log(4096), 0.0], ids=lambda b: f"b{b:.0f}")
@pytest.mark.parametrize("spread", [1.0, 4.0], ids=lambda std: f"std{std:.0f}")
@pytest.mark.parametrize("keys", [1, 100, 8192], ids=lambda n: f"K{n}")
def test_keeps_the_error_budget(keys, spread, constant, head_dim):
    # The few large weights of a short row make its error a matter of chance: many rows.
    batch = max(2, 4096 // keys)
    sizes = ((batch, 2, rows, head_dim) for rows in (1, keys, keys, 1))
    query, key, value, grad = (normal(*size, seed=i) for i, size in enumerate(sizes))
    drawn = Inputs(query * spread, key, value, grad, constant=constant)
    for dtype, allowed in ((torch.float32, 1.5), (torch.bfloat16, 1.15), (torch.float16, 1.15)):
        inputs = drawn.to(dtype)
        wide = inputs.to(torch.float64)
        exact = weights(wide) @ wide.value
        unavoidable = (eager if dtype == torch.float32 else floor)(inputs)["out"]
        measured, budget = error(decoded(inputs), exact), allowed * error(unavoidable, exact)
        assert measured <= budget, f"{dtype}: {measured:.3g}, may err by {budget:.3g}"
