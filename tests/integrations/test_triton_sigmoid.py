"""triton-sigmoid's two functions: layout, default bias, and causality aligned at the top left."""

import inspect
import math

import pytest
import torch

from sigmoid_attention.integrations import triton_sigmoid
from tests.support.attention.token_major_oracle import attend

CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def random(*shape, grad=False):
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


def tensors(Q, K, B=3, H=4, G=4, D=6, grad=False):
    return random(B, Q, H, D, grad=grad), *(random(B, K, G, D, grad=grad) for _ in range(2))


def top_left(Q, K):
    return torch.tensor([[j <= i for j in range(K)] for i in range(Q)])


@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_dense(T, is_causal):
    q, k, v = tensors(T, T)
    visible = top_left(T, T) if is_causal else True
    out = triton_sigmoid.sigmoid_attention(q, k, v, is_causal)
    torch.testing.assert_close(out, attend(q, k, v, -math.log(T), visible=visible), **CLOSE)
    score_mod = random(3, T, grad=True)
    out = triton_sigmoid.sigmoid_attention(q, k, v, is_causal, 0.3, -0.5, score_mod)
    expected = attend(q, k, v, -0.5 + score_mod[:, None, None], visible=visible, scale=0.3)
    torch.testing.assert_close(out, expected, **CLOSE)
    gradients = [
        torch.autograd.grad(answer.square().sum(), score_mod) for answer in (out, expected)
    ]
    torch.testing.assert_close(*gradients, **CLOSE)


@pytest.mark.parametrize("Q, K", [(7, 7), (4, 9), (9, 4), (1, 5)])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("modified", [False, True], ids=["plain", "score_mod"])
def test_padded(Q, K, is_causal, modified):
    q, k, v = tensors(Q, K, G=2 if modified else 4, grad=True)
    lengths_k = torch.tensor([K, K // 2, 0], dtype=torch.int32)
    lengths_q = torch.tensor([Q // 2, Q, Q], dtype=torch.int32)
    score_mod = random(3, K) if modified else None
    out = triton_sigmoid.sigmoid_attention_padded(
        q, k, v, lengths_k, lengths_q, is_causal, score_mod=score_mod
    )
    visible = (torch.arange(K) < lengths_k[:, None])[:, None, None]
    if is_causal:
        visible = visible & top_left(Q, K)
    bias = -lengths_k.double().clamp(min=1).log()[:, None, None, None]
    if modified:
        bias = bias + score_mod[:, None, None]
    expected = attend(q, k, v, bias, visible=visible)
    expected = expected * (torch.arange(Q) < lengths_q[:, None])[..., None, None]
    torch.testing.assert_close(out, expected, **CLOSE)
    direction = torch.randn_like(out)
    gradients = [
        torch.autograd.grad((answer * direction).sum(), (q, k, v)) for answer in (out, expected)
    ]
    torch.testing.assert_close(*gradients, **CLOSE)


def test_padded_without_lengths_is_dense():
    q, k, v = tensors(5, 5)
    out = triton_sigmoid.sigmoid_attention_padded(q, k, v, is_causal=True, sigmoid_bias=-2.0)
    torch.testing.assert_close(
        out, triton_sigmoid.sigmoid_attention(q, k, v, True, sigmoid_bias=-2.0), **CLOSE
    )


def test_padding_may_hold_any_number():
    q, k, v = tensors(5, 5)
    lengths = torch.tensor([5, 3, 2])
    out = triton_sigmoid.sigmoid_attention_padded(q, k, v, lengths)
    padded = (torch.arange(5) >= lengths[:, None])[..., None, None]
    k, v = k.masked_fill(padded, 1e30), v.masked_fill(padded, -1e30)
    torch.testing.assert_close(
        triton_sigmoid.sigmoid_attention_padded(q, k, v, lengths), out, **CLOSE
    )


def test_the_order_of_arguments_is_that_of_triton_sigmoid():
    names = ["query", "key", "value", "is_causal", "scale", "sigmoid_bias", "score_mod"]
    assert list(inspect.signature(triton_sigmoid.sigmoid_attention).parameters) == names
    padded = inspect.signature(triton_sigmoid.sigmoid_attention_padded)
    assert list(padded.parameters) == [*names[:3], "seq_lens_k", "seq_lens_q", *names[3:]]


@pytest.mark.parametrize(
    "error, wrong, name, mention",
    [
        (ValueError, {"query": torch.ones(3, 5, 6)}, "query", "(3, 5, 6)"),
        (ValueError, {"score_mod": torch.ones(3, 4)}, "score_mod", "(3, 4)"),
        (ValueError, {"seq_lens_k": torch.tensor([1, 2])}, "seq_lens_k", "(2,)"),
        (ValueError, {"seq_lens_q": torch.tensor([1, 2])}, "seq_lens_q", "(2,)"),
        (TypeError, {"query": [1.0]}, "query", "[1.0]"),
        (TypeError, {"score_mod": [1.0]}, "score_mod", "[1.0]"),
        (TypeError, {"seq_lens_k": 4}, "seq_lens_k", "4"),
        (TypeError, {"is_causal": "no"}, "is_causal", "'no'"),
        (TypeError, {"scale": torch.nn.Parameter(torch.ones(()))}, "scale", "could not learn"),
        (ValueError, {"sigmoid_bias": math.nan}, "sigmoid_bias", "nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_error_names_the_argument(error, wrong, name, mention):
    q = torch.ones(3, 5, 2, 6)
    with pytest.raises(error) as caught:
        triton_sigmoid.sigmoid_attention_padded(**{"query": q, "key": q, "value": q} | wrong)
    assert str(caught.value).startswith((f"{name} ", f"{name}: "))
    assert mention in str(caught.value)


@pytest.mark.parametrize("compiled", [False, True], ids=["called", "compiled"])
@pytest.mark.parametrize("name", ["seq_lens_k", "seq_lens_q"])
def test_a_length_lies_within_the_tokens(name, compiled):
    q = torch.ones(2, 5, 2, 6)

    def padded(lengths):
        return triton_sigmoid.sigmoid_attention_padded(q, q, q, **{name: lengths})

    torch._dynamo.reset()
    call = torch.compile(padded, fullgraph=True, backend="aot_eager") if compiled else padded
    for wrong, message in ((-1, "-1 to 3"), (6, "3 to 6")):
        with pytest.raises(ValueError, match=f"^{name} must lie in 0 to 5, .*, got {message}$"):
            call(torch.tensor([3, wrong]))
    good = torch.tensor([0, 5], dtype=torch.int32)
    torch.testing.assert_close(call(good), padded(good))


def test_the_dense_function_needs_as_many_queries_as_keys():
    with pytest.raises(ValueError, match=r"^key must have as many tokens as query, got 9 and 4"):
        triton_sigmoid.sigmoid_attention(*tensors(4, 9))
