"""Repeated calls from the call cache: the same outputs, errors and gradients as first calls."""

import itertools

import pytest
import torch
from torch import Tensor

from sigmoid_attention import Constant, Learned, NegLogLength
from sigmoid_attention.attention import (
    HeadValues,
    call_cache,
    sigmoid_attention,
    sigmoid_decode,
    validation,
)
from sigmoid_attention.attention.impl.cpu import abi, ops
from sigmoid_attention.attention.impl.cpu import call_cache as own

pytestmark = pytest.mark.usefixtures("kernel")

SLOPES = torch.tensor([0.5, 0.25, 0.1, 0.0])
# Each differs from the first in one thing that changes the answer, or only how it is computed.
CALLS = (
    {},
    {"bias": -1.0},
    {"bias": Constant(-2.5)},
    {"bias": NegLogLength(3)},
    {"scale": 0.3},
    {"is_causal": True},
    {"window_size": (2, 1)},
    {"softcap": 0.7},
    {"alibi_slopes": SLOPES},
    {"alibi_slopes": SLOPES.expand(2, 4) * torch.tensor([[1.0], [2.0]])},
    {"alibi_slopes": SLOPES.double()},
    {"skip_tolerance": 0.2},
    {"attn_mask": torch.arange(9) != 4},
    {"attn_mask": torch.linspace(-1, 1, 9)},
    {"attn_mask": torch.rand(2, 1, 9, 9).log()},
    {"attn_mask": torch.linspace(-1, 1, 9).double()},
    {"bias": torch.linspace(-1, 1, 4).view(4, 1, 1)},
    {"bias": torch.linspace(-1, 1, 4).view(4, 1, 1), "attn_mask": torch.arange(9) != 2},
    {"bias": torch.linspace(-2, 1, 8).view(2, 4, 1, 1)},
    {"bias": torch.linspace(-2, 1, 9).view(9, 1), "alibi_slopes": SLOPES},
    {"bias": torch.linspace(-2, 1, 4).view(4, 1, 1).double()},
    {"bias": Learned(-1.5, num_heads=4)},
    {"bias": HeadValues(torch.linspace(-2, 1, 4))},
)


@pytest.fixture
def remembered() -> dict:
    return call_cache._prepared


def drawn(dtype=torch.float32, queries=9, keys=9, heads=4) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(2, heads, queries, 8, dtype=dtype)
    return query, torch.randn(2, 4, keys, 8, dtype=dtype), torch.randn(2, 4, keys, 5, dtype=dtype)


def assert_equals_the_definition(tensors, arguments) -> None:
    actual = sigmoid_attention(*tensors, **{"bias": -2.0, **arguments})
    expected = sigmoid_attention(*tensors, **{"bias": -2.0, **arguments}, impl="reference")
    tolerance = 0.2 if "skip_tolerance" in arguments else 0.0
    bound = tolerance * tensors[2].abs().max().item()
    rounding = 1e-5 if tensors[0].dtype == torch.float32 else 2e-2
    torch.testing.assert_close(actual, expected, atol=bound + rounding, rtol=rounding)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_no_call_is_taken_for_another(dtype, remembered):
    with torch.no_grad():
        for arguments in CALLS * 3:
            assert_equals_the_definition(drawn(dtype), arguments)
    assert len(remembered) == len(CALLS) - 3  # a mask, a bias tensor and slopes in fp64 are not


def test_biases_and_masks_are_read_anew_every_time(remembered):
    bias, mask, tensors = torch.zeros(4, 1, 1), torch.ones(9, 9, dtype=torch.bool), drawn()
    for number in range(3):
        bias.fill_(number)
        mask[number] = False
        assert_equals_the_definition(tensors, {"bias": bias, "attn_mask": mask})
    assert len(remembered) == 1


def test_a_learned_bias_gets_its_gradient_after_calls_without_one(remembered):
    bias, tensors = Learned(-1.0, num_heads=4), drawn()
    for _ in range(2):
        with torch.no_grad():
            sigmoid_attention(*tensors, bias=bias)
        sigmoid_attention(*tensors, bias=bias).sum().backward()
    assert len(remembered) == 1
    assert bias.value.grad is not None and bias.value.grad.abs().min() > 0


def test_a_bias_for_other_heads_is_refused_after_good_ones():
    tensors = drawn()
    with torch.no_grad():
        sigmoid_attention(*tensors, bias=Learned(-1.0, num_heads=4))
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^bias: Learned has 1 heads, query 4"):
                sigmoid_attention(*tensors, bias=Learned(-1.0, num_heads=1))


def test_a_second_call_is_not_checked_again(monkeypatch):
    first = sigmoid_attention(*drawn(), bias=-2.0)
    monkeypatch.setattr(validation, "same_kind", lambda *_: pytest.fail("checked again"))
    assert sigmoid_attention(*drawn(), bias=-2.0).shape == first.shape


def test_a_first_call_packs_its_arguments_once(monkeypatch):
    packed, pack = [], abi.Arguments.bytes
    monkeypatch.setattr(
        abi.Arguments, "bytes", lambda *arguments: packed.append(1) or pack(*arguments)
    )
    sigmoid_attention(*drawn(), bias=-2.0)
    query, key, value = drawn(queries=1)
    used = torch.tensor([9, 3])
    sigmoid_decode(query, key, value, seqused_k=used, bias=-2.0, is_causal=True)
    assert len(packed) == 2


def test_calls_of_other_shapes_strides_and_types_are_distinguished(remembered):
    for _, queries, keys in itertools.product(range(2), (1, 9), (9, 17)):
        for tensors in (drawn(queries=queries, keys=keys), drawn(torch.float16, queries, keys)):
            assert_equals_the_definition(tensors, {})
            query, key, value = tensors
            by_token = key.transpose(1, 2).contiguous().transpose(1, 2)
            assert_equals_the_definition((query, by_token, value), {})
            gapped = torch.stack((query, query), -1)[..., 0]
            assert_equals_the_definition((gapped, key, value), {})
            assert_equals_the_definition((query, key[:, :1].expand_as(key), value), {})
    assert len(remembered) == 4 * 2 * 3


def with_offset(number) -> NegLogLength:
    return NegLogLength(8, offset=number)


@pytest.mark.parametrize("policy", (Constant, with_offset))
def test_a_policy_is_resolved_at_every_call(policy):
    number, tensors = torch.tensor(2.0), drawn()
    for value in (2.0, 5.0):
        number.fill_(value)
        assert_equals_the_definition(tensors, {"bias": policy(number)})


def test_a_view_of_negative_numbers_keeps_its_sign():
    numbers = torch.randn(2, 4, 9, 1, dtype=torch.complex64)
    key, value = torch.randn(2, 4, 9, 1), torch.randn(2, 4, 9, 5)
    for query in (numbers.imag, numbers.conj().imag, numbers.imag):
        assert_equals_the_definition((query, key, value), {})


def test_a_remembered_struct_is_the_one_that_would_be_written_anew(monkeypatch):
    seen = []
    monkeypatch.setattr(abi, "kernel", lambda name: seen.append)
    query, key, value = drawn()
    for tensors in (drawn(), (query, key, value)):
        out = sigmoid_attention(*tensors, bias=-2.0, alibi_slopes=SLOPES.clone())
    assert isinstance(out, Tensor)
    slopes = SLOPES.clone()
    again = sigmoid_attention(query, key, value, bias=-2.0, alibi_slopes=slopes)
    remembered = seen[-1]
    monkeypatch.setattr(call_cache, "_prepared", {})
    monkeypatch.setattr(call_cache, "cache_and_run", lambda *_: None)
    monkeypatch.setattr(ops, "empty_output", lambda *_: again)
    sigmoid_attention(query, key, value, bias=-2.0, alibi_slopes=slopes)
    assert seen[-1] == remembered


def test_the_lengths_of_a_cache_are_read_at_every_call(remembered):
    for used in ([9, 3], [1, 9], [5, 5], [1, 1]):
        query, key, value = drawn(queries=1)
        for lengths in (torch.tensor(used), torch.tensor(used, dtype=torch.int32)):
            actual = sigmoid_decode(query, key, value, seqused_k=lengths, bias=-2.0, is_causal=True)
            for index, many in enumerate(used):
                row = [x[index : index + 1] for x in (query, key[:, :, :many], value[:, :, :many])]
                expected = sigmoid_attention(*row, bias=-2.0, impl="reference")
                torch.testing.assert_close(actual[index : index + 1], expected)
    assert len(remembered) == 2  # one for each dtype
    with pytest.raises(ValueError, match=r"^seqused_k must lie in 0 to the cache's capacity 9, "):
        sigmoid_decode(
            query, key, value, seqused_k=torch.tensor([9, 10]), bias=-2.0, is_causal=True
        )
    with pytest.raises(ValueError, match=r"^seqused_k must lie in 0 to the cache's capacity 9, "):
        sigmoid_decode(
            query, key, value, seqused_k=torch.tensor([-1, 9]), bias=-2.0, is_causal=True
        )


@pytest.mark.parametrize(
    ("error", "wrong", "sentence"),
    (
        (ValueError, {"scale": float("nan")}, "scale must be a finite number"),
        (ValueError, {"window_size": (-2, 0)}, "window_size must be"),
        (ValueError, {"window_size": [-2, 0]}, "window_size must be"),
        (ValueError, {"softcap": -1.0}, "softcap must be positive"),
        (ValueError, {"skip_tolerance": "none"}, "skip_tolerance must be"),
        (TypeError, {"bias": "log"}, "bias must be a finite number"),
        (ValueError, {"alibi_slopes": torch.ones(3)}, "alibi_slopes must be"),
        (ValueError, {"impl": "fast"}, "impl must be"),
    ),
)
def test_bad_arguments_are_refused_after_good_ones(error, wrong, sentence):
    tensors = drawn()
    for _ in range(2):
        sigmoid_attention(*tensors, bias=-2.0)
        with pytest.raises(error, match=f"^{sentence}"):
            sigmoid_attention(*tensors, **{"bias": -2.0, **wrong})


def test_heads_are_shared_only_with_enable_gqa():
    query, key, value = drawn(heads=8)
    for _ in range(2):
        sigmoid_attention(query, key, value, bias=-2.0, enable_gqa=True)
        with pytest.raises(ValueError, match="enable_gqa=True shares them"):
            sigmoid_attention(query, key, value, bias=-2.0)


def test_gradients_and_transforms_are_followed_after_calls_without():
    query, key, value = drawn()
    sigmoid_attention(query, key, value, bias=-2.0)
    sigmoid_attention(query, key, value, bias=-2.0)
    learning = query.clone().requires_grad_()
    assert sigmoid_attention(learning, key, value, bias=-2.0).requires_grad
    with torch.no_grad():
        assert not sigmoid_attention(learning, key, value, bias=-2.0).requires_grad
    _, tangent = torch.func.jvp(
        lambda query: sigmoid_attention(query, key, value, bias=-2.0), (query,), (query,)
    )
    assert tangent.abs().max() > 0


def test_the_environment_and_the_number_of_threads_count(monkeypatch, remembered):
    tensors = drawn()
    sigmoid_attention(*tensors, bias=-2.0)
    with monkeypatch.context() as changed:
        changed.setenv("SIGMOID_ATTENTION_CPU", "off")
        with pytest.raises(NotImplementedError, match=r"^impl: there is no CPU kernel"):
            sigmoid_attention(*tensors, bias=-2.0, impl="cpu")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        sigmoid_attention(*tensors, bias=-2.0)
    finally:
        torch.set_num_threads(before)
    assert len(remembered) == 2  # work is cut for the threads there are


def test_memory_is_bounded(monkeypatch, remembered):
    monkeypatch.setattr(call_cache, "_MOST_KEYS", 3)
    for keys in range(1, 9):
        assert_equals_the_definition(drawn(keys=keys), {})
        assert 1 <= len(call_cache._prepared) <= 3


def test_calls_of_other_devices_are_left_alone(monkeypatch):
    """Whether there is a CPU kernel, which may have to be built first, is not theirs to ask."""
    monkeypatch.setattr(own, "available", None)
    query = torch.zeros(1, 2, 4, 8, device="meta")
    assert sigmoid_attention(query, query, query, bias=-1.0, impl="auto").device.type == "meta"
