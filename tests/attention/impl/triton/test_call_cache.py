"""Repeated calls from the call cache: the same outputs as first calls, by the same launches."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from sigmoid_attention.attention import (
    HeadValues,
    Learned,
    call_cache,
    sigmoid_attention,
    sigmoid_decode,
)
from sigmoid_attention.attention.impl.triton import activation, configs, ops
from sigmoid_attention.attention.impl.triton import call_cache as own
from tests.support.cpu.budgets import normal
from tests.support.triton.calls import FEATURES, SLOPES, qkv
from tests.support.triton.interpreter import Blocks
from tests.support.triton.shipped import H200

NOT_READ = mock.patch("sigmoid_attention.attention.decode.values_are_readable", lambda *_: False)


def others(tensors: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Tensors of the same kind with other numbers."""
    return tuple(normal(*x.shape, seed=seed + place).to(x.dtype) for place, x in enumerate(tensors))


def in_turns(function: Any, calls: list[tuple[tuple, dict]]) -> tuple[list[Tensor], list, int]:
    """Answers of calls that follow each other, those of each as the first, and how many kinds."""
    with mock.patch.object(own, "CALLS_BEFORE_CACHING", 1):
        actual = [function(*tensors, **arguments) for tensors, arguments in calls]
    kept = list(call_cache._prepared.values())
    first = []
    for tensors, arguments in calls:
        call_cache._prepared.clear()
        first.append(function(*tensors, **arguments))
    return actual, first, sum(hasattr(known, "_launches") for known in kept)


def attended(calls: list[tuple[tuple, dict]]) -> tuple[list[Tensor], list, int]:
    with torch.no_grad():
        return in_turns(sigmoid_attention, calls)


def decoded(calls: list[tuple[tuple, dict]]) -> tuple[list[Tensor], list, int]:
    with NOT_READ:
        return in_turns(sigmoid_decode, calls)


def assert_same(answers: tuple[list[Tensor], list[Tensor], int], kinds: int) -> None:
    uncached, first, kept = answers
    assert kept == kinds
    assert len(uncached) == len(first) > kinds
    assert all(torch.equal(left, right) for left, right in zip(uncached, first, strict=True))
    assert not torch.equal(uncached[0], uncached[-1])


# One of each way in which a launch has its tensors.
WAYS = (
    "causal-fewer-queries", "window", "three-heads-a-key-head-two-batches",
    "head-dim-40-value-dim-24", "slopes-causal-of-each-batch", "softcap", "bias-of-heads",
    "bias-of-rows-shared", "bias-of-keys", "bias-of-all", "bias-in-float64", "flags-of-keys",
    "mask-and-bias-of-pairs", "all-at-once",
)  # fmt: skip


@pytest.mark.parametrize("positional, arguments", [FEATURES[name] for name in WAYS], ids=WAYS)
def test_a_call_is_made_again_with_other_numbers(interpreted, positional, arguments):
    arguments = {"bias": -2.0, "enable_gqa": True, "impl": "triton"} | arguments
    calls = [(others(positional, seed), arguments) for seed in (10, 20)]
    assert_same(interpreted(attended, Blocks(described=True), calls), 1)


def test_a_bias_of_heads_is_read_anew(interpreted):
    for biases in (
        [HeadValues(normal(2, seed=seed).float()) for seed in (1, 2)],
        [Learned(-number, num_heads=2) for number in (1.5, 2.5)],
    ):
        calls = [
            (qkv(20, 33), {"bias": bias, "enable_gqa": True, "impl": "triton"}) for bias in biases
        ]
        assert_same(interpreted(attended, Blocks(), calls), 1)


def test_tensors_that_have_to_be_copied_are_read_at_every_call(interpreted):
    gapped = [tuple(torch.stack((x, x), -1)[..., 0] for x in others(qkv(9, 9), s)) for s in (1, 2)]
    calls = [(tensors, {"bias": -1.0, "enable_gqa": True, "impl": "triton"}) for tensors in gapped]
    assert_same(interpreted(attended, Blocks(), calls), 0)


def test_slopes_masks_and_biases_are_distinguished(interpreted):
    """By shape and strides, and whether they are there."""
    query, key, value = qkv(9, 9, batch=2)
    base = {"bias": -1.0, "enable_gqa": True, "impl": "triton"}
    kinds = [
        base,
        base | {"bias": -1.5},
        base | {"scale": 0.5},
        base | {"is_causal": True},
        base | {"softcap": 2.0},
        base | {"alibi_slopes": SLOPES},
        base | {"alibi_slopes": SLOPES.expand(2, 2).contiguous()},
        base | {"attn_mask": normal(9, 9) > 0},
        base | {"attn_mask": normal(2, 1, 1, 9) > 0},
        base | {"bias": normal(2, 1, 1)},
        base | {"bias": normal(9, 1)},
    ]
    calls = [((query, key, value), kind) for kind in kinds + kinds[::-1]]
    uncached, first, kept = interpreted(attended, Blocks(), calls)
    assert kept == len(kinds)
    assert all(torch.equal(left, right) for left, right in zip(uncached, first, strict=True))


@pytest.mark.parametrize("parts", (1, 3))
@pytest.mark.parametrize("paged", (False, True))
def test_a_decoding_step_is_made_again_with_other_lengths(interpreted, paged, parts):
    calls = []
    for seed, used in ((10, (70, 9)), (20, (0, 33)), (30, (96, 64))):
        query, key, value = others(qkv(1, 96, batch=2, heads=4, key_heads=2, dim=8), seed)
        tensors, table = (query, key, value), None
        if paged:
            pages = [normal(12, 16, 2, dim, seed=seed).float() for dim in (8, 16)]
            tensors, table = (query, *pages), torch.arange(12).view(2, 6).flip(0)
        lengths = torch.tensor(used, dtype=torch.int32)
        arguments = {
            "seqused_k": lengths,
            "bias": -2.0,
            "is_causal": True,
            "enable_gqa": True,
            "impl": "triton",
        }
        calls.append((tensors, arguments | {"block_table": table}))
    assert_same(interpreted(decoded_in, Blocks(), parts, calls), 1)


def decoded_in(parts: int, calls: list) -> tuple[list[Tensor], list, int]:
    from sigmoid_attention.attention.impl.triton import decode_ops

    with (
        mock.patch.object(decode_ops, "key_parts", lambda *_: parts),
        mock.patch.object(decode_ops, "block_keys", lambda *_: 16),
    ):
        return decoded(calls)


def learning_between(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    arguments = {"bias": -2.0, "impl": "triton"}
    with torch.no_grad():
        sigmoid_attention(*tensors, **arguments)
        sigmoid_attention(*tensors, **arguments)
    query = tensors[0].clone().requires_grad_()
    answer = sigmoid_attention(query, *tensors[1:], **arguments)
    return answer.detach(), torch.autograd.grad(answer.sum(), query)[0]


def test_gradients_are_followed_after_calls_without(interpreted):
    answer, grad = interpreted(learning_between, Blocks(), qkv(9, 9, key_heads=2))
    assert answer.shape == (1, 2, 9, 16) and grad.abs().max() > 0


def activations(tensors: tuple[Tensor, ...]) -> list[int]:
    kinds = []
    for name in ("accurate", "tanh", "accurate"):
        activation.use(name)
        for _ in range(2):
            sigmoid_attention(*tensors, bias=-2.0, impl="triton")
        kinds.append(len(call_cache._prepared))
    activation.use(None)
    return kinds


def test_the_activation_is_part_of_the_key(interpreted):
    assert interpreted(activations, Blocks(), qkv(9, 9, key_heads=2)) == [1, 2, 2]


def grown(tensors: tuple[Tensor, ...]) -> tuple[int, int]:
    query, key, value = tensors
    for keys in range(1, key.shape[2] + 1):
        sigmoid_attention(query, key[:, :, :keys], value[:, :, :keys], bias=-2.0, impl="triton")
    return len(call_cache._prepared), len(call_cache._counts)


def test_a_call_that_never_repeats_is_not_cached(interpreted):
    assert interpreted(grown, Blocks(), qkv(1, 5, key_heads=2)) == (0, 5)


def test_addresses_are_distinguished_by_their_alignment():
    row = torch.zeros(33)
    aligned, odd = row[: 32 - row.data_ptr() % 16 // 4], row[1:]
    assert call_cache._location(aligned) == call_cache._location(aligned[4:])
    assert call_cache._location(aligned) != call_cache._location(odd)


# Without a GPU: Triton's own way to a launch, up to where the compiled code would be started.

NO_DEVICE = 2**20


class Started:
    """Compiled code that writes down what it is started with."""

    function, packed_metadata = 0, None

    def __init__(self, name: str, starts: list[tuple]) -> None:
        self._name, self._starts = name, starts

    def launch_metadata(self, grid: tuple, stream: int, *arguments: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, *rest: Any) -> None:
        # Stream, function, metadata and hooks stand before the arguments.
        self._starts.append((self._name, x, y, z, *map(flat, rest[6:])))

    # Triton's own.
    __getitem__ = CompiledKernel.__getitem__

    def _init_handles(self) -> None:
        """There is no driver to load it."""


class Address(int):
    """Of a tensor."""


def flat(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return Address(argument.data_ptr())
    if isinstance(argument, TensorDescriptor):
        return [flat(part) for part in vars(argument).values()]
    return [flat(part) for part in argument] if isinstance(argument, tuple) else argument


class NoGpu:
    def get_current_device(self) -> int:
        return NO_DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def starts() -> Iterator[list[tuple]]:
    """What would be started on an H200."""
    started: list[tuple] = []

    def compiled(self: Any, key: str, signature: Any, device: int, *_: Any) -> Started:
        return self.device_caches[device][0].setdefault(key, Started(self.__name__, started))

    with (
        mock.patch.object(driver, "_active", NoGpu()),
        mock.patch.object(JITFunction, "_do_compile", compiled),
        mock.patch.object(configs, "NO_DEVICE", H200),
        mock.patch.object(ops, "_unfit", lambda *_: None),
        mock.patch.multiple(call_cache, _prepared={}, _counts={}, _triton=lambda: own),
        NOT_READ,
    ):
        yield started


def named(argument: Any, names: dict[Address, str]) -> Any:
    """With a name for each address; what a call makes anew is named in its order."""
    if isinstance(argument, Address):
        return names.setdefault(argument, f"made {len(names)}")
    if isinstance(argument, list | tuple):
        return [named(part, names) for part in argument]
    return argument


def dense(dim: int, dtype=torch.bfloat16, length=128, **arguments: Any) -> Any:
    tensors = tuple(torch.zeros(1, length, 2, dim, dtype=dtype).transpose(1, 2) for _ in range(3))
    return sigmoid_attention, tensors, {"bias": -3.0} | arguments


def step(pages: int = 0) -> Any:
    cache = [torch.zeros(9, 16, 2, 64) if pages else torch.zeros(1, 2, 64, 64) for _ in range(2)]
    table = torch.zeros(1, pages, dtype=torch.int32) if pages else None
    arguments = {"seqused_k": torch.tensor([50]), "bias": -3.0, "enable_gqa": True}
    arguments["is_causal"] = True
    return (
        sigmoid_decode,
        (torch.zeros(1, 4, 1, 64), *cache),
        arguments | {"block_table": table},
    )


@pytest.mark.parametrize(
    "function, tensors, arguments",
    [
        dense(64),
        dense(128, is_causal=True),
        dense(40, torch.float32, softcap=2.0),
        dense(64, torch.float16, attn_mask=torch.ones(128, 128, dtype=torch.bool)),
        dense(64, length=1024, is_causal=True, alibi_slopes=SLOPES),
        dense(128, bias=torch.zeros(2, 1, 1), window_size=(64, 0)),
        step(),
        step(pages=4),
    ],
    ids=("D64", "causal", "fp32", "flags", "planned", "bias", "decoding", "pages"),
)
def test_compiled_code_is_started_with_what_triton_starts_it_with(
    starts, function, tensors, arguments
):
    inputs = (*tensors, *(x for x in arguments.values() if isinstance(x, Tensor)))
    rounds = []
    # Looked at in full, twice; through Triton's door, which finds the code; and straight to it.
    for _ in range(4):
        starts.clear()
        function(*tensors, **arguments, impl="triton")
        names = {Address(x.data_ptr()): f"given {place}" for place, x in enumerate(inputs)}
        rounds.append(named(starts, names))
    assert rounds[0] and all(each == rounds[0] for each in rounds)


def test_a_gpu_with_too_little_memory_is_left_to_others(starts, monkeypatch):
    def failing(*_: Any) -> None:
        raise OutOfResources(200_000, 100_000, "shared memory")

    monkeypatch.setattr(Started, "run", failing)
    tensors = [torch.zeros(1, 1, 64, 64) for _ in range(3)]
    sentence = r"^query: this GPU has 100000 of shared memory, the kernel forward needs 200000$"
    for _ in range(3):
        with pytest.raises(NotImplementedError, match=sentence):
            sigmoid_attention(*tensors, bias=-2.0, impl="triton")
    # Nor does a call that is known stand in their way.
    window, settings = (-1, -1), (None, False, None, False, "rounding")
    seen = call_cache.call_key("triton", *tensors, None, None, -2.0, None, None, window, *settings)
    assert seen is not None and seen.key in call_cache._prepared
    assert call_cache.run_cached(seen) is None


def test_no_tensors_are_kept(starts):
    tensors = [torch.zeros(1, 2, 1024, 64, dtype=torch.bfloat16) for _ in range(3)]
    watched = [weakref.ref(x) for x in tensors]
    for _ in range(3):
        sigmoid_attention(*tensors, is_causal=True, alibi_slopes=SLOPES, impl="triton")
    starts.clear()
    tensors.clear()
    gc.collect()
    assert len(call_cache._prepared) == 1
    assert [each() for each in watched] == [None] * 3


def test_the_cache_is_off_by_default(monkeypatch):
    """It starts compiled code by a private call of Triton, and no GPU has timed it."""
    assert not own.ENABLED
    monkeypatch.setattr(own, "ENABLED", False)
    assert call_cache._triton.__wrapped__() is None
    monkeypatch.setattr(own, "ENABLED", True)
    assert call_cache._triton.__wrapped__() is own
