"""Centred keys in timm's layers and under the names of other libraries."""

import accelerate
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sigmoid_attention import CentredKeys, Learned, LearnedCentring, NegLogLength, RowLSE
from sigmoid_attention.integrations import flash_attn, flash_sigmoid, triton_sigmoid
from sigmoid_attention.integrations.timm import SigmoidAttention, convert
from sigmoid_attention.integrations.timm_layers import CLASSES
from tests.support.attention.centred import centred_by_hand, visibility

BIAS = -1.75
STRENGTH = torch.tensor([1.0, 0.5, 0.0, 1.25], dtype=torch.float64)
CENTRED = CentredKeys(BIAS, STRENGTH)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def by_hand(q_BNHD: Tensor, k_BNGD: Tensor, v_BNGD: Tensor, visible: Tensor) -> Tensor:
    tensors = (x.transpose(1, 2) for x in (q_BNHD, k_BNGD, v_BNGD))
    return centred_by_hand(*tensors, visible, bias=BIAS, strength=STRENGTH).transpose(1, 2)


def qkv(queries: int = 7, keys: int = 7, key_heads: int = 2) -> list[Tensor]:
    chance = torch.Generator().manual_seed(queries + keys)
    shapes = ((2, queries, 4, 6), (2, keys, key_heads, 6), (2, keys, key_heads, 6))
    return [torch.randn(shape, generator=chance, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("window", [(-1, -1), (3, 1)], ids=str)
def test_flash_attn_Q5_K7(window):
    q, k, v = qkv(5)
    out = flash_attn.flash_attn_func(q, k, v, window_size=window, sigmoid_bias=CENTRED)
    torch.testing.assert_close(out, by_hand(q, k, v, visibility(5, 7, window)), **CLOSE)


def test_flash_attn_of_packed_sequences():
    q, k, v = qkv()
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    out = flash_attn.flash_attn_varlen_func(
        q[0], k[0], v[0], ends, ends, 4, 4, causal=True, sigmoid_bias=CENTRED
    )
    for rows in (slice(0, 3), slice(3, 7)):
        tensors = [x[:1, rows] for x in (q, k, v)]
        length = tensors[0].shape[1]
        expected = by_hand(*tensors, visibility(length, length, (-1, 0)))
        torch.testing.assert_close(out[rows], expected[0], **CLOSE)


def test_flash_attn_with_a_cache_that_grows():
    q, k, v = qkv()
    k_cache, v_cache = torch.full((2, 2, 9, 2, 6), torch.nan, dtype=torch.float64)
    expected, start = by_hand(q, k, v, visibility(7, 7, (-1, 0))), 0
    for count in (4, 1, 2):
        new = [x[:, start : start + count] for x in (q, k, v)]
        out = flash_attn.flash_attn_with_kvcache(
            new[0], k_cache, v_cache, *new[1:], cache_seqlens=start, causal=True,
            sigmoid_bias=CENTRED,
        )  # fmt: skip
        torch.testing.assert_close(out, expected[:, start : start + count], **CLOSE)
        start += count


def test_flash_sigmoid():
    q, k, v = qkv(key_heads=4)
    out = flash_sigmoid.flash_attn_func(q, k, v, causal=True, sigmoid_bias=CENTRED)
    torch.testing.assert_close(out, by_hand(q, k, v, visibility(7, 7, (-1, 0))), **CLOSE)


def test_triton_sigmoid():
    q, k, v = qkv(key_heads=4)
    out = triton_sigmoid.sigmoid_attention(q, k, v, is_causal=True, sigmoid_bias=CENTRED)
    torch.testing.assert_close(out, by_hand(q, k, v, visibility(7, 7, (-1, 0))), **CLOSE)


def test_triton_sigmoid_with_padding_that_is_not_finite():
    q, k, v = qkv(key_heads=4)
    lengths = torch.tensor([7, 4])
    k[1, 4:] = torch.nan
    out = triton_sigmoid.sigmoid_attention_padded(
        q, k, v, lengths, lengths, is_causal=True, sigmoid_bias=CENTRED
    )
    for row, length in enumerate(lengths.tolist()):
        tensors = [x[row : row + 1, :length] for x in (q, k, v)]
        expected = by_hand(*tensors, visibility(length, length, (-1, 0)))
        torch.testing.assert_close(out[row, :length], expected[0], **CLOSE)


# timm -----------------------------------------------------------------------------------------

LAYERS = {
    "plain": (Attention, {"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm}),
    "rope-gqa": (AttentionRope, {"qkv_fused": False, "num_kv_heads": 2}),
    "eva": (EvaAttention, {"norm_layer": nn.LayerNorm}),
}
MASKS = {
    "none": {},
    "boolean": {"attn_mask": torch.rand(2, 1, 6, 6) < 0.7},
    "causal": {"is_causal": True},
}


def centred_sdpa(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
    queries, keys = query.shape[2], key.shape[2]
    visible = visibility(queries, keys, (-1, 0) if is_causal else (-1, -1))
    if attn_mask is not None:
        visible = visible & attn_mask
    return centred_by_hand(query, key, value, visible, bias=BIAS, strength=STRENGTH)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind, settings", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not-fused"])
def test_a_layer_of_timm_is_its_own_with_centred_keys(kind, settings, mask, fused, monkeypatch):
    theirs = kind(16, num_heads=4, dtype=torch.float64, **settings)
    bias = LearnedCentring(BIAS, 4).double()
    bias.strength.data.copy_(STRENGTH)
    ours = CLASSES[kind](16, num_heads=4, dtype=torch.float64, sigmoid_bias=bias, **settings)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.fused_attn = fused
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    monkeypatch.setattr(F, "scaled_dot_product_attention", centred_sdpa)
    torch.testing.assert_close(ours(x, **mask), theirs(x, **mask), **CLOSE)
    ours(x, **mask).square().sum().backward()
    assert bias.strength.grad.all()


def vision_transformer():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=4, num_classes=3
    ).eval()


def test_each_module_of_a_model_has_strengths_of_its_own():
    model = convert(vision_transformer(), LearnedCentring(Learned(NegLogLength(5), 4), 4))
    names = [name for name, _ in model.named_parameters() if "sigmoid_bias" in name]
    assert names == [
        f"blocks.{block}.attn.sigmoid_bias.{name}"
        for block in range(2)
        for name in ("strength", "bias.value")
    ]
    image = torch.randn(2, 3, 32, 32)
    model(image).square().sum().backward()
    first, second = (block.attn.sigmoid_bias.strength for block in model.blocks)
    assert first is not second and first.grad.any() and second.grad.any()
    loaded = convert(vision_transformer(), LearnedCentring(Learned(NegLogLength(5), 4), 4))
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded(image), model(image))


def test_a_fixed_strength_needs_no_parameter():
    image = torch.randn(2, 3, 32, 32)
    plain, model = vision_transformer(), vision_transformer()
    model.load_state_dict(plain.state_dict())
    convert(plain, NegLogLength(5))
    convert(model, CentredKeys(NegLogLength(5), strength=0.0))
    torch.testing.assert_close(model(image), plain(image))
    convert(model, CentredKeys(NegLogLength(5)))
    assert not torch.allclose(model(image), plain(image), rtol=0, atol=1e-5)


def test_a_trace_of_a_model_has_its_centred_attention_as_leaves():
    model = convert(vision_transformer(), LearnedCentring(NegLogLength(5), 4))
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(image), model(image))


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (LearnedCentring(-2.0, 3), "LearnedCentring has 3 heads, blocks.0.attn has 4"),
        (CentredKeys(-2.0, torch.ones(4)), "CentredKeys holds a strength that would be no param"),
        (CentredKeys(Learned(-2.0, 4)), "CentredKeys holds a bias that would be no parameter of"),
    ],
    ids=["heads", "strength", "bias"],
)
def test_a_bias_that_a_model_could_not_hold_is_refused(bias, message):
    model = vision_transformer()
    with pytest.raises(ValueError, match=message):
        convert(model, bias)
    assert not any(isinstance(block.attn, SigmoidAttention) for block in model.blocks)


def layer() -> SigmoidAttention:
    bias = LearnedCentring(Learned(-2.0, 3), 3, init=0.75)
    return SigmoidAttention(12, num_heads=3, sigmoid_bias=bias).eval()


def test_an_offloaded_layer_computes_the_same():
    attention, x = layer(), torch.randn(2, 7, 12)
    with torch.no_grad():
        expected = attention(x)
        accelerate.cpu_offload(attention, execution_device=torch.device("cpu"))
        assert torch.equal(attention(x), expected)


def test_gradients_for_each_sample():
    attention, x = layer().double(), torch.randn(3, 7, 12, dtype=torch.float64)
    parameters = dict(attention.named_parameters())

    def loss(parameters, row):
        return functional_call(attention, parameters, (row[None],)).square().sum()

    by_sample = vmap(grad(loss), (None, 0))(parameters, x)
    for sample, row in enumerate(x):
        attention.zero_grad()
        loss(parameters, row).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(by_sample[name][sample], parameter.grad)


def test_row_lse_is_refused_inside():
    with pytest.raises(ValueError, match="bias must not remove the common part of a row itself"):
        convert(vision_transformer(), LearnedCentring(RowLSE(), 4))
