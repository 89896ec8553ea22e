"""The tiled mode: values and derivatives of the definition, and the tiles that it may skip."""

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from sigmoid_attention import NegLogLength, NegLogVisible, sigmoid_attention
from sigmoid_attention.attention import dispatch
from sigmoid_attention.attention.bounds import TileClass, classify
from sigmoid_attention.attention.dispatch import Backend
from sigmoid_attention.attention.impl import reference_blocks, tiled, tiled_ops
from sigmoid_attention.attention.impl.tiles import Tiles


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiled_ops, "BLOCK_Q", 4)
    monkeypatch.setattr(tiled_ops, "BLOCK_K", 3)


def tensors(b=2, h=4, g=2, nq=9, nk=11, d=5, e=6, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    return normal(b, h, nq, d), normal(b, g, nk, d), normal(b, g, nk, e)


CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window_size": (3, 2)},
    "causal-window": {"is_causal": True, "window_size": (4, -1)},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.0, 2.0, 1.0]), "is_causal": True},
    "alibi-batch": {"alibi_slopes": torch.rand(2, 4, generator=torch.Generator().manual_seed(1))},
    "softcap": {"softcap": 1.5},
    "bias-head": {"bias": torch.linspace(-3, 0, 4).view(4, 1, 1)},
    "bias-row": {"bias": torch.linspace(-3, 0, 18).view(2, 1, 9, 1)},
    "bias-full": {"bias": torch.linspace(-3, 1, 4 * 9 * 11).view(4, 9, 11)},
    "mask-bool": {"attn_mask": torch.arange(99).view(9, 11) % 4 > 0},
    "mask-padding": {"attn_mask": torch.arange(11) >= torch.tensor([0, 5]).view(2, 1, 1, 1)},
    "mask-float": {"attn_mask": torch.linspace(-2, 2, 11).masked_fill(torch.arange(11) == 4, -1e9)},
    "mask-hidden": {"attn_mask": torch.full((9, 11), -math.inf).tril(2)},
    "visible": {"bias": NegLogVisible(2), "is_causal": True},
}


def options(case):
    cast = {
        name: value.double()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in CASES[case].items()
    }
    return {"bias": NegLogLength(11), "enable_gqa": True, **cast}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(9, 11), (11, 11), (11, 5), (1, 11)], ids=str)
def test_equals_the_definition(case, shape):
    nq, nk = shape
    settings = options(case)
    if any(
        (isinstance(value, torch.Tensor) and value.dim() > 2) or name == "attn_mask"
        for name, value in settings.items()
    ) and shape != (9, 11):
        settings = options("alibi")
    q, k, v = tensors(nq=nq, nk=nk)
    expected = sigmoid_attention(q, k, v, impl="reference", **settings)
    actual = sigmoid_attention(q, k, v, impl="tiled", skip_tolerance=0.0, **settings)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_fp32(dtype):
    q, k, v = tensors(dtype=dtype)
    expected = sigmoid_attention(q, k, v, bias=-4.0, enable_gqa=True, impl="reference")
    actual = sigmoid_attention(q, k, v, bias=-4.0, enable_gqa=True, impl="tiled")
    assert actual.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(actual, expected, rtol=unit, atol=unit * float(expected.abs().max()))


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("causal", "visible")])
def test_first_and_second_derivatives(case):
    settings = {**options(case), "skip_tolerance": 0.0, "impl": "tiled"}
    small = case in ("plain", "alibi", "softcap", "bias-head", "window")
    shape = {"b": 1, "nq": 5, "nk": 7, "d": 2, "e": 2} if small else {"d": 2, "e": 2}
    q, k, v = (x.requires_grad_() for x in tensors(**shape))
    names = [n for n in ("bias", "attn_mask", "alibi_slopes") if _trainable(settings.get(n))]
    extra = [settings.pop(name).clone().requires_grad_() for name in names]

    def call(q, k, v, *extra):
        return sigmoid_attention(q, k, v, **settings, **dict(zip(names, extra, strict=True)))

    assert gradcheck(call, (q, k, v, *extra), fast_mode=True)
    assert gradgradcheck(call, (q, k, v, *extra), fast_mode=True)


def _trainable(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def test_gradients_equal_the_definitions_at_full_size():
    q, k, v = (x.requires_grad_() for x in tensors())
    slopes = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 4, 9, 11, dtype=torch.float64, requires_grad=True)
    arguments = {"alibi_slopes": slopes, "bias": bias, "enable_gqa": True, "softcap": 2.0}
    weight = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    grads = [
        torch.autograd.grad(
            (sigmoid_attention(q, k, v, impl=impl, skip_tolerance=0.0, **arguments) * weight).sum(),
            (q, k, v, slopes, bias),
        )
        for impl in ("reference", "tiled")
    ]
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-11, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "alibi", "mask-bool", "mask-float", "bias-row"])
def test_opcheck(case):
    arguments = options(case)
    q, k, v = (x.requires_grad_() for x in tensors(b=2, d=2, e=2))
    bias = arguments["bias"]
    bias = bias if isinstance(bias, torch.Tensor) else torch.tensor(-2.0, dtype=torch.float64)
    mask, slopes = arguments.get("attn_mask"), arguments.get("alibi_slopes")
    settings = (0.5, None, -1, 0 if arguments.get("is_causal") else -1, 4, 3)
    forward = (q, k, v, bias.clone().requires_grad_(), mask, slopes, *settings)
    torch.library.opcheck(tiled_ops.tiled_forward, (*forward, 2.0**-53, True))
    out, visits = tiled_ops.tiled_forward(*forward, 2.0**-53, True)
    backward = (torch.randn_like(out), visits, *forward, [True, mask is not None, True])
    torch.library.opcheck(tiled_ops.tiled_backward, backward)
    with torch.no_grad():
        directions = [torch.randn_like(grad) for grad in tiled_ops.tiled_backward(*backward)]
        # Nothing is differentiated a third time, so this one is checked without gradients.
        torch.library.opcheck(
            tiled_ops.tiled_double_backward,
            (*directions, *(_detached(argument) for argument in backward)),
        )


def _detached(argument):
    return argument.detach() if isinstance(argument, torch.Tensor) else argument


def test_compiles_as_one_graph():
    def call(q, k, v):
        return sigmoid_attention(q, k, v, is_causal=True, impl="tiled").square().sum()

    q, k, v = (x.requires_grad_() for x in tensors(h=2, nq=7, nk=7))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(call(q, k, v), (q, k, v))
    torch.testing.assert_close(torch.autograd.grad(compiled(q, k, v), (q, k, v)), expected)


def skipping(n, slope, spread, dtype, seed):
    """Causal ALiBi, where far tiles fade; returns the tensors and the call's settings."""
    q, k, v = tensors(b=1, h=2, g=1, nq=n, nk=n, d=4, e=3, seed=seed)
    q, k, v = (q * spread).to(dtype), (k * spread).to(dtype), v.to(dtype)
    slopes = torch.tensor([slope, slope / 8], dtype=torch.float64)
    return q, k, v, slopes


def visits_and_classes(q, k, v, slopes, bias, tolerance, relative):
    tiles = Tiles(q, k, v, torch.tensor(bias).double(), None, slopes, 0.5, None, -1, 0, 4, 3)
    out, visits = tiled.forward(tiles, tolerance, relative)
    return out, classify(tiles.bounds(), visits)


CERTIFICATE = list(itertools.product([0.3, 1.0, 3.0], [0.2, 1.0, 2.0], [0.0, -4.0], [0, 1]))


@pytest.mark.product
@pytest.mark.parametrize(("slope", "spread", "bias", "seed"), CERTIFICATE, ids=str)
def test_the_weight_of_skipped_tiles_is_below_the_bound(slope, spread, bias, seed):
    q, k, v, slopes = skipping(61, slope, spread, torch.float64, seed)
    for number, relative in ((2.0**-8, True), (2.0**-24, True), (1e-2, False), (1e-5, False)):
        check_promise(q, k, v, slopes, bias, number, relative)


@pytest.mark.slow
def test_one_of_many_equal_weights_is_not_dropped():
    # 513 weights near 1 in half precision: the last one, alone in its block, is below a unit of
    # their sum, and 20 times what rounding them costs.
    q = k = torch.zeros(1, 1, 513, 4, dtype=torch.bfloat16)
    v = torch.zeros(1, 1, 513, 1, dtype=torch.bfloat16)
    v[:, :, -1] = 1
    out = sigmoid_attention(q, k, v, bias=4.0, impl="tiled")
    assert bool((out[:, :, 0] > 0.9).all())


def check_promise(q, k, v, slopes, bias, number, relative):
    out, classes = visits_and_classes(q, k, v, slopes, bias, number, relative)
    weights = _weights(q, k, slopes, bias)
    skipped = classes == TileClass.SKIPPED
    dropped = weights * _expand(skipped, 61)
    kept = (weights - dropped).norm(dim=-1)
    limit = number * kept if relative else torch.full_like(kept, number)
    assert bool((dropped.sum(-1) <= limit).all())
    exact = weights @ v
    assert bool(((out - exact).abs().amax(-1) <= limit * v.abs().max() + 1e-14).all())
    assert bool(
        (_expand(classes == TileClass.TAIL, 61) * (_logits(q, k, slopes, bias) > -4)).sum() == 0
    )


def test_something_is_skipped_and_nothing_at_zero_tolerance():
    q, k, v, slopes = skipping(61, 3.0, 0.2, torch.float64, 0)
    _, classes = visits_and_classes(q, k, v, slopes, -4.0, 2.0**-8, True)
    assert (classes == TileClass.SKIPPED).float().mean() > 0.3
    _, classes = visits_and_classes(q, k, v, slopes, -4.0, 0.0, False)
    assert not bool((classes == TileClass.SKIPPED).any())


def test_gradients_are_those_of_the_tiles_that_were_visited():
    q, k, v, slopes = skipping(61, 3.0, 0.5, torch.float64, 2)
    _, classes = visits_and_classes(q, k, v, slopes, -1.0, 1e-2, False)
    kept = _expand((classes == TileClass.TAIL) | (classes == TileClass.FULL), 61)
    leaves = [x.clone().requires_grad_() for x in (q, k, v, slopes)]
    probe = torch.randn(1, 2, 61, 3, dtype=torch.float64)

    def grads(impl, mask, tolerance):
        q, k, v, slopes = leaves
        arguments = {"bias": -1.0, "alibi_slopes": slopes, "is_causal": True, "scale": 0.5}
        out = sigmoid_attention(
            q, k, v, mask, enable_gqa=True, impl=impl, skip_tolerance=tolerance, **arguments
        )
        return torch.autograd.grad((out * probe).sum(), leaves)

    torch.testing.assert_close(grads("tiled", None, 1e-2), grads("reference", kept, 0.0))


def _logits(q, k, slopes, bias):
    n = q.shape[2]
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    return 0.5 * q @ k.mT + bias - slopes.view(2, 1, 1) * distance


def _weights(q, k, slopes, bias):
    return torch.sigmoid(_logits(q, k, slopes, bias)).tril()


def _expand(tiles, n):
    return tiles.repeat_interleave(4, -2)[..., :n, :].repeat_interleave(3, -1)[..., :n]


def test_auto_takes_tiles_only_where_the_scores_are_many(monkeypatch):
    q, k, v = tensors()
    calls = []
    counted = Backend(lambda problem: calls.append(1) or problem.query, tiled_ops.refuse)
    monkeypatch.setitem(dispatch.BACKENDS, "tiled", counted)
    sigmoid_attention(q, k, v, bias=-1.0, enable_gqa=True)
    assert not calls
    monkeypatch.setattr(reference_blocks, "DENSE_SCORES", 10)
    sigmoid_attention(q, k, v, bias=-1.0, enable_gqa=True)
    assert calls


def test_refuses_dropout():
    q, k, v = tensors()
    with pytest.raises(NotImplementedError, match="dropout_p"):
        sigmoid_attention(q, k, v, bias=-1.0, enable_gqa=True, impl="tiled", dropout_p=0.5)


def test_auto_keeps_to_the_definition_under_transforms(monkeypatch):
    monkeypatch.setattr(reference_blocks, "DENSE_SCORES", 10)
    q, k, v = (x[:, :2] for x in tensors(h=2))

    def call(q, k, v):
        return sigmoid_attention(q, k, v, bias=-1.0)

    expected = call(q, k, v)
    mapped = torch.func.vmap(call)(*(torch.stack([x, x]) for x in (q, k, v)))
    torch.testing.assert_close(mapped, torch.stack([expected, expected]))
    _, change = torch.func.jvp(call, (q, k, v), (q, k, v))
    assert change.shape == expected.shape and bool(change.abs().sum() > 0)
