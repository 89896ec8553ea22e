"""RMSNorm, QK-norm and LayerScale."""

import pytest
import torch

from sigmoid_attention.nn import LayerScale, QKNorm, RMSNorm


@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 7)], ids=str)
def test_rms_norm_is_its_formula(shape):
    norm, x = RMSNorm(shape[-1]).double(), torch.randn(shape, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_keeps_a_low_precision_input_with_fp32_gains(dtype):
    assert RMSNorm(8)(torch.randn(2, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_qk_norm_normalises_each_head_with_separate_gains(kind):
    norm = QKNorm(kind, head_dim=16)
    query, key = (10 * torch.randn(2, 1, 3, 5, 16)).unbind(0)
    normed_query, normed_key = norm(query, key)
    torch.testing.assert_close(normed_query.pow(2).mean(-1), torch.ones(1, 3, 5))
    if kind == "layer":
        torch.testing.assert_close(normed_key.mean(-1), torch.zeros(1, 3, 5), atol=1e-6, rtol=0)
    weights = torch.linspace(-1, 1, 16)
    ((normed_query + 2 * normed_key) * weights).sum().backward()
    assert norm.query.weight.grad.any() and norm.key.weight.grad.any()
    assert not torch.equal(norm.query.weight.grad, norm.key.weight.grad)


def test_qk_norm_none_is_the_identity():
    query, key = torch.randn(2, 1, 2, 3, 4).unbind(0)
    assert all(map(torch.equal, QKNorm(None, 4)(query, key), (query, key)))
    assert not list(QKNorm(None, 4).parameters())


def test_qk_norm_refuses_another_name():
    with pytest.raises(ValueError, match="qk_norm must be 'rms', 'layer' or None, got 'batch'"):
        QKNorm("batch", 8)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_qk_norm_returns_bf16_under_autocast(kind):
    query = torch.randn(1, 2, 3, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normed, _ = QKNorm(kind, 8)(query, query)
    assert normed.dtype == torch.bfloat16


def test_layer_scale_starts_at_the_papers_value_and_trains():
    scale = LayerScale(5)
    scale(torch.ones(2, 5)).sum().backward()
    torch.testing.assert_close(scale.gamma, torch.full((5,), 1e-4))
    torch.testing.assert_close(scale.gamma.grad, torch.full((5,), 2.0))


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LayerScale(3, float("nan")), "init must be finite, got nan"),
    ],
    ids=["nan"],
)
def test_wrong_values_are_refused(make, match):
    with pytest.raises(ValueError, match=match) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LayerScale(3.0), "dim must be a whole number, got 3.0"),
        (lambda: LayerScale(3, None), "init must be a number, got None"),
        (
            lambda: LayerScale(3, torch.nn.Parameter(torch.ones(2))),
            "init must be a number, got a P",
        ),
        (lambda: RMSNorm(3, eps="0"), "eps must be a number, got the string '0'"),
        (lambda: QKNorm(["rms"], 4), r"qk_norm must be .*, got \['rms'\]"),
    ],
    ids=["dim", "none", "parameter", "eps", "list"],
)
def test_wrong_types_are_refused(make, match):
    with pytest.raises(TypeError, match=match) as error:
        make()
    assert "\n" not in str(error.value)


def test_layer_scale_may_start_at_a_whole_number():
    assert LayerScale(3, init=1)(torch.ones(3)).dtype == torch.float32
