"""FlexAttention's exact form as an independent implementation for comparison."""

import pytest
import torch
import torch.nn.attention.flex_attention as flex_module
from hypothesis import HealthCheck, given, settings

from sigmoid_attention import sigmoid_attention, sigmoid_decode, sigmoid_varlen_attention
from sigmoid_attention.attention import NegLogLength
from sigmoid_attention.attention.impl import flex
from tests.support.attention.calls import Call, calls
from tests.support.attention.definition import define


@pytest.fixture
def uncompiled(monkeypatch):
    """FlexAttention's own eager form: compiling each kind of call would take most of the time."""
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_compiled", lambda device: flex_module.flex_attention)


def assert_defined(tensors, arguments, rtol=1e-11, atol=1e-13):
    with torch.no_grad():
        out = sigmoid_attention(*tensors, **arguments, impl="flex")
    exact = define(*tensors, **arguments).out
    torch.testing.assert_close(out.double(), exact, rtol=rtol, atol=atol)
    assert out.dtype == tensors[0].dtype


CALL = Call(batch=2, key_heads=2, group=1, queries=5, keys=7, head_dim=4, value_dim=3)
CALLS = {
    "number": CALL,
    "gqa": CALL.but(group=3, bias="tensor H11"),
    "bias-of-pairs": CALL.but(bias="tensor BHQK"),
    "bias-of-rows": CALL.but(bias="tensor BHQ1"),
    "bias-of-keys": CALL.but(bias="tensor 111K"),
    "visible-keys": CALL.but(bias="visible", is_causal=True),
    "row-lse": CALL.but(bias="lse"),
    "learned": CALL.but(bias="learned", scale=-0.4),
    "causal": CALL.but(is_causal=True),
    "causal-more-queries": CALL.but(is_causal=True, queries=7, keys=3),
    "window": CALL.but(window_size=(2, 1)),
    "window-left": CALL.but(window_size=(1, -1), queries=7),
    "window-right": CALL.but(window_size=(-1, 1)),
    "softcap": CALL.but(softcap=0.7),
    "alibi": CALL.but(slopes="H", is_causal=True),
    "alibi-of-batch": CALL.but(slopes="BH"),
    "boolean-mask": CALL.but(mask="bool B11K", is_causal=True),
    "boolean-mask-of-pairs": CALL.but(mask="bool BHQK"),
    "float-mask": CALL.but(mask="float QK"),
    "float-mask-that-hides": CALL.but(mask="hiding HQ1", slopes="H", softcap=5.0),
    "strided": CALL.but(strided=True),
}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_the_definition_in_float64(call):
    assert_defined(*call.build())


@pytest.mark.usefixtures("uncompiled")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls().filter(lambda call: call.keys > 0))
def test_equals_the_definition_for_any_combination(call):
    assert_defined(*call.build())


def test_compiled_calls_of_several_kinds():
    torch._dynamo.reset()
    for call in (CALLS["window"], CALLS["gqa"], CALLS["gqa"].but(keys=12)):
        assert_defined(*call.build())


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_small_weights_keep_their_digits(dtype):
    # At b = -log n an offset that keeps the logarithm's argument from zero would drown them.
    tensors, _ = CALL.but(queries=9, keys=9, seed=3).build(dtype)
    eps = torch.finfo(dtype).eps
    assert_defined(tensors, {"bias": -20.0}, rtol=40 * eps, atol=40 * eps * 9 * 2e-9)


@pytest.mark.usefixtures("uncompiled")
def test_a_query_that_sees_nothing_returns_zeros():
    (query, key, value), _ = CALL.but(queries=7, keys=3).build()
    out = sigmoid_attention(query, key, value, bias=0.0, is_causal=True, impl="flex")
    assert not out[:, :, :4].any()
    assert out[:, :, 4:].all()
    hidden = torch.tensor([True, False, True]).view(1, 1, 1, 3)
    none = sigmoid_attention(query, key, value, hidden & False, bias=0.0, impl="flex")
    assert not none.any()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("length", [40, 300])
def test_a_window_of_blocks_is_exact_at_its_edges(length):
    query, key, value = torch.randn(3, 1, 1, length, 8, dtype=torch.float64).unbind(0)
    arguments = {"bias": -3.0, "window_size": (70, 0)}
    out = sigmoid_attention(query, key, value, **arguments, impl="flex")
    behind = torch.arange(length)[:, None] - torch.arange(length)
    weights = torch.sigmoid(query @ key.mT / 8**0.5 - 3.0) * ((behind >= 0) & (behind <= 70))
    torch.testing.assert_close(out, weights @ value, rtol=1e-11, atol=1e-13)


def test_a_window_leaves_blocks_of_keys_out():
    mask = flex._block_mask((100, 0), 1024, 1024, torch.device("cpu"))
    assert mask.sparsity() > 70


def test_it_compiles_within_a_callers_graph():
    def call(query, key, value):
        return sigmoid_attention(query, key, value, bias=-1.0, is_causal=True, impl="flex")

    query, key, value = torch.randn(3, 1, 2, 9, 8).unbind(0)
    compiled = torch.compile(call, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value), call(query, key, value))


@pytest.mark.usefixtures("uncompiled")
class TestRefusals:
    QUERY = torch.ones(1, 2, 4, 8)

    def test_dropout_by_name(self):
        q = self.QUERY
        with pytest.raises(NotImplementedError, match=r"^dropout_p: "):
            sigmoid_attention(q, q, q, impl="flex", dropout_p=0.5)

    @pytest.mark.parametrize("learning", ["query", "bias"])
    def test_gradients_on_a_cpu(self, learning):
        q, bias = self.QUERY.clone(), torch.zeros(2, 1, 1)
        (q if learning == "query" else bias).requires_grad_()
        with pytest.raises(NotImplementedError, match=r"^query:? .* no backward pass on a CPU"):
            sigmoid_attention(q, q, q, bias=bias, impl="flex")
        with torch.no_grad():
            sigmoid_attention(q, q, q, bias=bias, impl="flex")

    def test_packed_and_cached_sequences(self):
        with pytest.raises(NotImplementedError, match=r"^cu_seq_q, seqused_k: "):
            sigmoid_decode(
                self.QUERY, self.QUERY, self.QUERY, seqused_k=torch.tensor([4]),
                bias=NegLogLength(4), impl="flex", is_causal=True)  # fmt: skip
        q, ends = torch.ones(4, 2, 8), torch.tensor([0, 4])
        with pytest.raises(NotImplementedError, match=r"^cu_seq_q, seqused_k: "):
            sigmoid_varlen_attention(q, q, q, ends, ends, 4, 4, bias=0.0, impl="flex")

    def test_empty_arrays(self):
        with pytest.raises(NotImplementedError, match=r"^query, key, value: "):
            sigmoid_attention(self.QUERY, *[self.QUERY[:, :, :0]] * 2, bias=0.0, impl="flex")
