"""timm's vision transformers against timm's own code with a sigmoid in place of its softmax."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, LayerScale
from timm.layers.attention import Attention
from timm.models.eva import EvaAttention
from torch import nn

from sigmoid_attention import Constant, Learned, NegLogEffectiveLength, NegLogLength
from sigmoid_attention.integrations.timm import SigmoidAttention, convert, register
from sigmoid_attention.integrations.timm_layers import CLASSES

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
BIAS = -1.75


@pytest.fixture
def timm_with_a_sigmoid(monkeypatch):
    """What timm calls for its softmax computes sigmoid(logits + BIAS) instead."""

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        if is_causal:
            attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, -math.inf)
        if attn_mask is not None:
            logits = logits + attn_mask
        return torch.sigmoid(logits + BIAS) @ value

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)


def random(*shape, grad=False):
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


LAYERS = {
    "plain": (Attention, {}),
    "qk_norm": (Attention, {"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm}),
    "scale_norm": (Attention, {"scale_norm": True, "norm_layer": nn.LayerNorm, "proj_bias": False}),
    "gated": (Attention, {"gated": True, "qkv_bias": True}),
    "head_dim-dim_out": (Attention, {"attn_head_dim": 5, "dim_out": 7}),
    "rope": (AttentionRope, {}),
    "rope-separate": (AttentionRope, {"qkv_fused": False, "rotate_half": True}),
    "rope-gqa": (AttentionRope, {"qkv_fused": False, "num_kv_heads": 2}),
    "rope-normed-gated": (
        AttentionRope, {"qk_norm": True, "norm_layer": nn.LayerNorm, "gated": True},
    ),
    "eva": (EvaAttention, {"norm_layer": nn.LayerNorm, "num_prefix_tokens": 2}),
    "eva-separate": (EvaAttention, {"qkv_fused": False, "scale_norm": False, "rotate_half": True}),
    "eva-no-bias": (EvaAttention, {"qkv_bias": False, "scale_norm": False}),
}  # fmt: skip
MASKS = {
    "none": {},
    "boolean": {"attn_mask": torch.rand(2, 1, 6, 6) < 0.7},
    "float": {"attn_mask": torch.randn(1, 4, 6, 6).double()},
    "causal": {"is_causal": True},
}


def pair(kind, settings):
    """timm's layer and ours, with the same random parameters."""
    theirs = kind(16, num_heads=4, dtype=torch.float64, **settings)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = CLASSES[kind](16, num_heads=4, dtype=torch.float64, sigmoid_bias=BIAS, **settings)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def rotations(kind, settings, head_dim=4, tokens=6):
    if kind is Attention:
        return {}
    prefix = settings.get("num_prefix_tokens", 1)
    # A pair of sine and cosine per channel, as timm's embedding of positions lays them out.
    return {"rope": random(tokens - prefix, 2 * head_dim)}


class TestLayers:
    @pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
    @pytest.mark.parametrize("kind, settings", LAYERS.values(), ids=LAYERS)
    @pytest.mark.usefixtures("timm_with_a_sigmoid")
    def test_each_is_timms_own_with_a_sigmoid(self, kind, settings, mask):
        theirs, ours = pair(kind, settings)
        x, rope = random(2, 6, 16, grad=True), rotations(kind, settings)
        expected, actual = theirs(x, **rope, **mask), ours(x, **rope, **mask)
        torch.testing.assert_close(actual, expected, **CLOSE)
        direction = torch.randn_like(expected)
        gradients = [
            torch.autograd.grad((out * direction).sum(), [x, *layer.parameters()])
            for out, layer in ((expected, theirs), (actual, ours))
        ]
        torch.testing.assert_close(*gradients, **CLOSE)

    @pytest.mark.parametrize("kind, settings", LAYERS.values(), ids=LAYERS)
    def test_without_the_fused_switch_weights_pass_through_attn_drop(self, kind, settings):
        _, ours = pair(kind, settings)
        assert ours.fused_attn
        x, rope = random(2, 6, 16), rotations(kind, settings)
        expected, seen = ours(x, **rope), []
        ours.fused_attn = False
        ours.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(out))
        torch.testing.assert_close(ours(x, **rope), expected, **CLOSE)
        assert seen[0].shape == (2, 4, 6, 6)
        assert ((seen[0] >= 0) & (seen[0] <= 1)).all()
        assert (seen[0].sum(-1) - 1).abs().max() > 0.1

    def test_the_switch_is_timms(self):
        timm.layers.set_fused_attn(False)
        try:
            assert not SigmoidAttention(8, 2).fused_attn
        finally:
            timm.layers.set_fused_attn(True)
        assert SigmoidAttention(8, 2).fused_attn

    @pytest.mark.parametrize("fused", [True, False])
    def test_dropout_is_for_training(self, fused):
        torch.manual_seed(0)
        layer = SigmoidAttention(16, 4, attn_drop=0.5, sigmoid_bias=BIAS)
        layer.fused_attn = fused
        x = torch.randn(1, 9, 16)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))

    def test_autocast(self):
        layer = SigmoidAttention(16, 4, qk_norm=True, norm_layer=nn.LayerNorm, sigmoid_bias=BIAS)
        x = torch.randn(2, 6, 16)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.02)

    def test_it_compiles_in_one_graph(self):
        layer = SigmoidAttention(16, 4).eval()
        x = torch.randn(2, 6, 16)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
        assert layer.first_tokens == 6


class TestBias:
    def test_without_one_the_first_calls_tokens_are_n_for_good(self):
        layer = SigmoidAttention(16, 4, dtype=torch.float64)
        x = random(1, 9, 16)
        layer(x[:, :6])
        longer = layer(x)
        layer.sigmoid_bias = -math.log(6)
        torch.testing.assert_close(longer, layer(x), **CLOSE)

    def test_under_a_mask_there_must_be_one(self):
        layer = SigmoidAttention(16, 4)
        mask = torch.ones(6, 6, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"^sigmoid_bias: under a mask"):
            layer(torch.randn(1, 6, 16), attn_mask=mask)
        layer(torch.randn(1, 6, 16))
        layer(torch.randn(1, 6, 16), attn_mask=mask)

    def test_it_is_printed(self):
        assert "bias=NegLogLength(n=5" in repr(SigmoidAttention(8, 2, sigmoid_bias=NegLogLength(5)))
        learned = repr(SigmoidAttention(8, 2, sigmoid_bias=Learned(0.0, num_heads=2)))
        assert learned.count("Learned(num_heads=2)") == 1


def vit(**settings):
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 4, "depth": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **small | settings)


class TestModels:
    @pytest.mark.parametrize("attn_layer", [SigmoidAttention, "sigmoid"], ids=["class", "name"])
    def test_attn_layer_takes_the_class_and_the_registered_name(self, attn_layer):
        register()
        settings = {"qk_norm": True, "init_values": 1e-4}
        theirs, ours = vit(**settings), vit(**settings, attn_layer=attn_layer)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        block = ours.blocks[1]
        assert type(block.attn) is SigmoidAttention
        assert isinstance(block.ls1, LayerScale)
        assert isinstance(block.attn.q_norm, nn.Module) and block.attn.q_norm.weight.numel() == 4
        ours(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert all(parameter.grad is not None for parameter in ours.parameters())
        assert block.attn.first_tokens == 17

    @pytest.mark.usefixtures("timm_with_a_sigmoid")
    def test_convert_makes_timms_model_with_a_sigmoid(self):
        model, image = vit().double().train(), random(2, 3, 32, 32)
        model.blocks[1].eval()
        parameters = {name: id(each) for name, each in model.named_parameters()}
        expected = model(image)
        assert convert(model, BIAS) is model
        torch.testing.assert_close(model(image), expected, **CLOSE)
        assert {name: id(each) for name, each in model.named_parameters()} == parameters
        assert model.training and not model.blocks[1].training
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize(
        "settings, n",
        [({}, 17), ({"reg_tokens": 4}, 21), ({"class_token": False, "global_pool": "avg"}, 16)],
        ids=["class-token", "registers", "patches-only"],
    )
    def test_the_default_n_is_patches_and_prefix(self, settings, n):
        model = convert(vit(**settings))
        assert model.blocks[0].attn.sigmoid_bias == NegLogLength(n)
        built = convert(vit(**settings, attn_layer=SigmoidAttention))
        assert built.blocks[0].attn.sigmoid_bias == NegLogLength(n)

    def test_a_learned_bias_is_each_modules_own(self):
        model = convert(vit(), Learned(NegLogLength(17), num_heads=4))
        names = [f"blocks.{i}.attn.sigmoid_bias.value" for i in range(2)]
        assert [name for name in model.state_dict() if "sigmoid" in name] == names
        assert model.blocks[0].attn.sigmoid_bias is not model.blocks[1].attn.sigmoid_bias
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert all(block.attn.sigmoid_bias.value.grad.all() for block in model.blocks)

    @pytest.mark.parametrize(
        "name, settings, kind",
        [
            ("eva02_tiny_patch14_224", {"img_size": 28}, "SigmoidEvaAttention"),
            ("vit_small_patch16_dinov3", {"img_size": 32}, "SigmoidEvaAttention"),
            ("vit_small_patch16_rope_224", {"img_size": 32}, "SigmoidAttentionRope"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    @pytest.mark.usefixtures("timm_with_a_sigmoid")
    def test_rotary_models(self, name, settings, kind):
        model = timm.create_model(name, depth=2, embed_dim=32, num_heads=4, **settings)
        image = torch.randn(1, 3, settings["img_size"], settings["img_size"])
        with torch.no_grad():
            expected = model.eval()(image)
            out = convert(model, BIAS)(image)
        assert type(model.blocks[1].attn).__name__ == kind
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "name, settings, n",
        [
            ("deit_tiny_distilled_patch16_224", {"img_size": 32}, 6),
            ("vit_small_patch14_reg4_dinov2", {"img_size": 28}, 9),
            ("vit_base_patch16_clip_224", {"img_size": 32}, 5),
            ("vit_base_patch16_siglip_224", {"img_size": 32}, 4),
            ("aimv2_large_patch14_224", {"img_size": 28}, 4),
            ("vit_base_patch16_rope_mixed_224", {"img_size": 32}, 5),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_families(self, name, settings, n):
        model = timm.create_model(name, depth=1, embed_dim=32, num_heads=4, **settings)
        convert(model, keep=("attn_pool",) if "siglip" in name else ())
        assert model.blocks[0].attn.sigmoid_bias == NegLogLength(n)

    def test_a_patch_embedding_by_a_network_needs_an_example_input(self):
        settings = {"img_size": 64, "depth": 1, "embed_dim": 32, "num_heads": 4}
        model = timm.create_model("vit_tiny_r_s16_p8_224", **settings)
        with pytest.raises(ValueError, match=r"^example_input: VisionTransformer does not say"):
            convert(model)
        convert(model, example_input=torch.zeros(1, 3, 64, 64))
        assert model.blocks[0].attn.sigmoid_bias == NegLogLength(model.patch_embed.num_patches + 1)

    def test_a_model_of_patches_of_any_number(self):
        model = timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=32, num_heads=4)
        with pytest.raises(ValueError, match=r"^bias: NaFlexVit does not say how many tokens"):
            convert(model)
        with pytest.raises(ValueError, match=r"^example_input: NaFlexVit does not say"):
            convert(model, NegLogLength(256))
        patches = {
            "patches": torch.randn(2, 12, 16 * 16 * 3),
            "patch_coord": torch.cartesian_prod(torch.arange(3), torch.arange(4)).expand(2, -1, -1),
            "patch_valid": torch.arange(12) < torch.tensor([[12], [8]]),
        }
        convert(model, NegLogLength(256), example_input=patches)
        padded = ~patches["patch_valid"][..., None]
        other = patches | {"patches": patches["patches"].masked_fill(padded, 50.0)}
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(other), model(patches))


class TestRefusals:
    def test_a_block_with_attention_of_its_own(self):
        model = vit(attn_layer=SigmoidAttention, depth=1)
        model.blocks.append(timm.models.vision_transformer.ParallelScalingBlock(16, 4))
        with pytest.raises(ValueError, match=r"^model: blocks\.1 \(ParallelScalingBlock\) would"):
            convert(model)

    def test_a_pool_with_attention_unless_it_is_kept(self):
        model = vit(global_pool="map", class_token=False)
        with pytest.raises(ValueError, match=r"^model: attn_pool \(AttentionPoolLatent\) .* keep="):
            convert(model)
        assert type(model.blocks[0].attn) is Attention
        assert not hasattr(model.blocks[0].attn, "sigmoid_bias")
        with pytest.raises(ValueError, match=r"^model: attn_pool"):
            convert(model, keep=("attn", "head"))
        convert(model, keep=("attn_pool",))
        assert type(model.blocks[0].attn) is SigmoidAttention

    def test_a_failed_conversion_leaves_a_sigmoid_model_its_bias(self):
        model = vit(global_pool="map", class_token=False, attn_layer=SigmoidAttention)
        model.blocks[0].attn.sigmoid_bias = -3.0
        with pytest.raises(ValueError, match=r"^model: attn_pool"):
            convert(model, Learned(0.0, num_heads=4))
        assert model.blocks[0].attn.sigmoid_bias == -3.0
        assert not any("sigmoid" in name for name in model.state_dict())

    @pytest.mark.parametrize(
        "name, kind",
        [
            ("swin_tiny_patch4_window7_224", "SwinTransformer"),
            ("beit_base_patch16_224", "Beit"),
            ("hiera_tiny_224", "Hiera"),
            ("resnet18", "ResNet"),
        ],
        ids=lambda value: value,
    )
    def test_models_without_attention_that_is_known(self, name, kind):
        with torch.device("meta"):
            model = timm.create_model(name)
        with pytest.raises(ValueError, match=f"^model: {kind} has no attention"):
            convert(model)

    def test_an_attention_that_nothing_reaches(self):
        model = vit()
        model.spare = Attention(16, 4)
        with pytest.raises(ValueError, match=r"^model: spare was not reached"):
            convert(model)

    def test_a_subclass_is_not_taken_for_its_parent(self):
        class Own(Attention):
            pass

        model = vit()
        model.blocks[1].attn = Own(16, 4)
        with pytest.raises(ValueError, match=r"^model: blocks\.1\.attn \(Own\) would still run"):
            convert(model)

    @pytest.mark.parametrize(
        "error, bias, mention",
        [
            (TypeError, torch.zeros(4), "got a tensor of shape"),
            (ValueError, 10**400, "got a number of 1329 bits"),
            (
                ValueError,
                Constant(nn.Parameter(torch.zeros(()))),
                "Constant holds a Parameter .*; Learned",
            ),
            (ValueError, NegLogEffectiveLength((0.5,), 8), r"1 slopes, blocks\.0\.attn has 4"),
            (ValueError, Learned(0.0, num_heads=3), r"3 heads, blocks\.0\.attn has 4"),
        ],
        ids=["tensor", "huge", "parameter", "slopes", "heads"],
    )
    def test_a_bias_that_does_not_fit(self, error, bias, mention):
        with pytest.raises(error, match=f"^bias:? .*{mention}"):
            convert(vit(), bias)
