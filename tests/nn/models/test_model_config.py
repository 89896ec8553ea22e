"""The configuration: round trips, recipes, both activations, and errors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sigmoid_attention.attention import (
    Constant,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
)
from sigmoid_attention.attention.bias import head_values
from sigmoid_attention.nn import PRESETS, DecoderLM, ModelConfig, alibi_slopes
from sigmoid_attention.nn.models.recipes import recipe_settings
from sigmoid_attention.nn.position import RoPEWithALiBi, slope_numbers
from sigmoid_attention.training.optimizer import TrainConfig, decoupled_adamw

PARAMETER = torch.nn.Parameter(torch.ones(3))
SIZES = dict(vocab_size=11, dim=24, layers=2, num_heads=3, max_seq_len=16)


OPTIONS = dict(
    centred_keys=True,
    state_bias=True,
    gate="element",
    value_residual=True,
    mass_exponent="learned",
    reach="trained",
)


@pytest.mark.parametrize(
    "options",
    [OPTIONS, dict(mass_exponent=0.0), dict(gate="head"), dict(position="rope+alibi")],
    ids=str,
)
def test_options_round_trip_and_are_kept_by_the_softmax_arm(options):
    config = ModelConfig(**{**SIZES, **options})
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    softmax = config.as_softmax()
    assert {name: getattr(softmax, name) for name in options} == options
    DecoderLM(softmax)  # without a warning


def test_a_model_without_options_writes_the_fields_of_older_versions():
    later = {"moe", *OPTIONS}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(ModelConfig(**SIZES).to_dict()) == fields - later
    config = ModelConfig(**SIZES, **OPTIONS)
    assert set(config.to_dict()) == fields - {"moe"}


def test_options_reach_every_layer_that_they_mean_something_to():
    model = DecoderLM(ModelConfig(**SIZES, **OPTIONS, bias=-2.0))
    first, second = (
        {name.removesuffix(".weight") for name in block.attention.state_dict()}
        for block in model.blocks
    )
    projections = {"query", "key", "value", "output"}
    own = {"bias.strength", "bias.bias.offset", "bias.bias", "gate", "mass_exponent.exponent"}
    assert first == projections | own
    assert second == first | {"value_residual.share"}
    softmax = DecoderLM(ModelConfig(**SIZES, **OPTIONS).as_softmax()).blocks[1].attention
    names = {name.removesuffix(".weight") for name in softmax.state_dict()}
    assert names == projections | {"gate", "value_residual.share"}


def test_options_change_no_draw_of_the_initial_weights():
    plain, changed = (
        (torch.manual_seed(0), DecoderLM(ModelConfig(**SIZES, **options)).state_dict())[1]
        for options in ({}, OPTIONS)
    )
    assert all(torch.equal(changed[name], weight) for name, weight in plain.items())


def test_only_matrices_of_the_options_decay():
    model = DecoderLM(ModelConfig(**SIZES, **OPTIONS, bias=-2.0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays, kept = decoupled_adamw(model, TrainConfig(steps=1)).param_groups
    decaying = {names[id(p)].rpartition("attention.")[2] for p in decays["params"]}
    constant = {names[id(p)].rpartition("attention.")[2] for p in kept["params"]}
    assert {"gate.weight", "bias.bias.weight"} <= decaying
    assert {
        "bias.strength",
        "bias.bias.offset",
        "mass_exponent.exponent",
        "value_residual.share",
    } <= constant


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name):
    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_names_the_field_that_is_wrong():
    with pytest.raises(ValueError, match="unknown field 'depth'"):
        ModelConfig.from_dict({**SIZES, "depth": 3})
    with pytest.raises(TypeError, match="must be a dict of its fields, got None"):
        ModelConfig.from_dict(None)
    with pytest.raises(TypeError, match="moe must be a dict of its fields, got 3"):
        ModelConfig.from_dict({**SIZES, "moe": 3})
    with pytest.raises(ValueError, match="field 'num_heads' is missing"):
        ModelConfig.from_dict({k: v for k, v in SIZES.items() if k != "num_heads"})


def test_the_softmax_arm_differs_in_its_activation_only():
    config = ModelConfig.recipe("recommended", **SIZES)
    softmax = config.as_softmax()
    fields = [f.name for f in dataclasses.fields(config)]
    assert [f for f in fields if getattr(config, f) != getattr(softmax, f)] == ["activation"]


def test_the_papers_recipe():
    config = ModelConfig.recipe("paper", **SIZES)
    assert (config.position, config.norm_placement, config.qk_norm) == ("alibi", "hybrid", "rms")
    assert config.bias_policy() == NegLogLength(16)
    assert config.norm_eps == 1e-5 and config.tie_embeddings and config.dropout_p == 0
    assert ModelConfig.recipe("paper", position="rope", **SIZES).position == "rope"


@pytest.mark.parametrize(
    "position", ["rope", "alibi", "rope+alibi", "sincos", "learned", "cape", "none"]
)
def test_the_recommended_recipe_fits_every_position(position):
    config = ModelConfig.recipe("recommended", position=position, **SIZES)
    assert config.position == position
    config.bias_policy()


def test_the_recommended_bias_beside_slopes_is_by_the_effective_length():
    config = ModelConfig.recipe("recommended", position="rope+alibi", **SIZES)
    slopes = RoPEWithALiBi().slope_numbers(config.num_heads)
    assert config.bias_policy().value.tolist() == pytest.approx(
        head_values(NegLogEffectiveLength(slopes, 16), config.num_heads, "bias")
    )
    assert config == ModelConfig.recipe("recommended", **SIZES)
    assert config.centred_keys and config.reach == "trained"


@pytest.mark.parametrize("position", ["rope", "alibi", "rope+alibi"])
def test_a_recipe_replaces_all_settings_of_another(position):
    recommended = ModelConfig.recipe("recommended", **SIZES)
    for name in ("paper", "recommended"):
        changed = dataclasses.replace(recommended, **recipe_settings(name, position))
        assert changed == ModelConfig.recipe(name, position=position, **SIZES)


def test_a_head_without_slopes_sees_all_keys():
    config = ModelConfig(bias="neg_log_effective_length", position="rope", **SIZES)
    assert config.bias_policy() == NegLogLength(16)


def test_sizes_win_over_the_recipe():
    assert ModelConfig.recipe("recommended", qk_norm=None, **SIZES).qk_norm is None


@pytest.mark.parametrize(
    "settings, policy",
    [
        (dict(), NegLogLength(16)),
        (dict(bias_offset=-2.5), NegLogLength(16, -2.5)),
        (dict(window_size=5), NegLogLength(5)),
        (dict(window_size=50), NegLogLength(16)),
        (dict(bias="neg_log_visible"), NegLogVisible()),
        (dict(bias=-10.0), Constant(-10.0)),
        (
            dict(bias="neg_log_effective_length", position="rope+alibi", num_heads=4),
            NegLogEffectiveLength((0.25, 0.0, 2**-6, 0.0), 16),
        ),
        (
            dict(bias="neg_log_effective_length", bias_offset=-1.0),
            NegLogEffectiveLength(alibi_slopes(3), 16, -1.0),
        ),
    ],
    ids=str,
)
def test_bias_names_give_policies(settings, policy):
    assert ModelConfig(**{**SIZES, **settings}).bias_policy() == policy


def test_a_learned_bias_starts_at_the_policy():
    config = ModelConfig(**SIZES, bias="neg_log_effective_length", learn_bias=True)
    learned = config.bias_policy()
    assert isinstance(learned, Learned)
    expected = NegLogEffectiveLength(alibi_slopes(3), 16).values
    torch.testing.assert_close(learned.value.data, torch.tensor(expected))


@pytest.mark.parametrize(
    "settings, width",
    [(dict(), 256), (dict(feed_forward="gelu"), 96), (dict(ffn_dim=50), 50)],
    ids=str,
)
def test_width_of_the_feed_forward_layers(settings, width):
    assert ModelConfig(**SIZES, **settings).hidden_dim == width


@pytest.mark.parametrize(
    "settings, match",
    [
        (dict(dim=25), r"dim must be a multiple of num_heads \(3\), got 25"),
        (dict(num_heads=0), "num_heads must be positive, got 0"),
        (dict(max_seq_len=-1), "max_seq_len must be positive, got -1"),
        (dict(layers=0), "layers must be positive"),
        (dict(num_kv_heads=2), r"num_kv_heads must divide num_heads \(3\), got 2"),
        (dict(window_size=0), "window_size must be positive"),
        (dict(softcap=float("nan")), "softcap must be positive, got nan"),
        (dict(dropout_p=1.0), "dropout_p must be at least 0 and below 1, got 1.0"),
        (dict(activation="relu"), "activation must be one of"),
        (dict(position="xpos"), "position must be one of .* got 'xpos'"),
        (dict(norm_placement="sandwich"), "norm_placement must be one of"),
        (dict(qk_norm="batch"), "qk_norm must be one of"),
        (dict(feed_forward="relu"), "feed_forward must be one of"),
        (dict(bias="log"), "bias must be a number or one of"),
        (dict(rope_base=10**400), "rope_base must be positive, got a number of 1329 bits"),
        (dict(norm_eps=1e-50), "norm_eps must be positive, got 1e-50"),
        (dict(layer_scale=float("inf")), "layer_scale must be finite, got inf"),
        (dict(bias=float("nan")), "bias must be a finite number or one of .*, got nan"),
        (dict(bias=float("inf")), "bias must be a finite number or one of .*, got inf"),
        (dict(bias=10**400), "bias must be a finite number .*, got a number of 1329 bits"),
        (dict(bias_offset=float("nan")), "bias_offset must be finite, got nan"),
        (dict(bias=-3.0, bias_offset=-1.0), "bias_offset moves"),
        (dict(bias="neg_log_visible", bias_offset=-1.0), "bias_offset moves"),
        (dict(bias="neg_log_visible", learn_bias=True), "learn_bias starts from one number"),
        (dict(bias="neg_log_visible", state_bias=True), "state_bias starts from one number"),
        (dict(gate="heads"), "gate must be one of"),
        (dict(mass_exponent="x"), "mass_exponent must be a finite number, 'learned' or None"),
        (dict(mass_exponent=float("inf")), "mass_exponent must be a finite number, 'learned'"),
        (dict(head_dim=5, position="rope+alibi"), r"position 'rope\+alibi' needs an even head_dim"),
        (dict(head_dim=5, position="rope"), "position 'rope' needs an even head_dim, got 5"),
        (dict(dim=27, position="sincos"), "position 'sincos' needs an even dim, got 27"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(settings, match):
    with pytest.raises(ValueError, match=match) as error:
        ModelConfig(**{**SIZES, **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, match",
    [
        (dict(dim=None), "dim must be a whole number, got None"),
        (dict(num_heads=None), "num_heads must be a whole number, got None"),
        (dict(layers="2"), "layers must be a whole number, got the string '2'"),
        (dict(layers=True), "layers must be a whole number, got True"),
        (dict(ffn_dim=2.5), "ffn_dim must be a whole number, got 2.5"),
        (dict(rope_base=None), "rope_base must be a number, got None"),
        (dict(softcap=PARAMETER), "softcap must be a number, got a Parameter of shape"),
        (dict(layer_scale=torch.ones(24)), "layer_scale must be a number, got a tensor"),
        (dict(dropout_p=PARAMETER), "dropout_p must be a number, got a Parameter"),
        (dict(dropout_p="0"), "dropout_p must be a number, got the string '0'"),
        (dict(bias=PARAMETER), "bias must be a finite number or one of .*, got a Parameter"),
        (dict(bias=None), "bias must be a finite number or one of .*, got None"),
        (dict(bias=["neg_log_length"]), "bias must be a finite number or one of"),
        (dict(bias_offset=None), "bias_offset must be a number, got None"),
        (dict(bias_offset=PARAMETER), "bias_offset must be a number, got a Parameter"),
        (dict(learn_bias="no"), "learn_bias must be True or False, got the string 'no'"),
        (dict(tie_embeddings=None), "tie_embeddings must be True or False, got None"),
        (dict(centred_keys="no"), "centred_keys must be True or False, got the string 'no'"),
        (dict(state_bias=None), "state_bias must be True or False, got None"),
        (dict(value_residual="1"), "value_residual must be True or False, got the string '1'"),
        (dict(gate=False), "gate must be one of"),
        (dict(mass_exponent=PARAMETER), "mass_exponent must be a number, got a Parameter"),
        (dict(moe=dict(experts=2)), "moe must be a MoEConfig or None, got builtins.dict"),
        (dict(moe=4), "moe must be a MoEConfig or None, got 4"),
        (dict(activation=["sigmoid"]), "activation must be one of .*, got \\['sigmoid'\\]"),
        (dict(position=PARAMETER), "position must be one of .*, got a Parameter"),
        (dict(position=[PARAMETER]), "position must be one of .*, got \\[Parameter containing"),
        (dict(feed_forward={}), "feed_forward must be one of .*, got builtins.dict"),
    ],
    ids=str,
)
def test_wrong_types_are_refused(settings, match):
    with pytest.raises(TypeError, match=match) as error:
        ModelConfig(**{**SIZES, **settings})
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_kept_as_pythons():
    sizes = {name: np.int64(size) for name, size in SIZES.items()}
    config = ModelConfig(**sizes, bias=np.float32(-2.5), learn_bias=np.bool_(True), dropout_p=0)
    assert config == ModelConfig(**SIZES, bias=-2.5, learn_bias=True)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("heads", [1, 3, 8, 12, 16])
def test_a_model_of_fake_tensors_has_its_bias(heads):
    sizes = {**SIZES, "dim": 2 * heads, "num_heads": heads}
    config = ModelConfig(**sizes, bias="neg_log_effective_length", learn_bias=True)
    expected = config.bias_policy()
    with FakeTensorMode():
        model = DecoderLM(config)
        logits = model(torch.zeros(2, 5, dtype=torch.long))
    assert logits.shape == (2, 5, 11)
    fixed = dataclasses.replace(config, learn_bias=False)
    with FakeTensorMode():
        assert fixed.bias_policy() == NegLogEffectiveLength(slope_numbers(heads), 16)
        assert DecoderLM(fixed)(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 11)
    values = NegLogEffectiveLength(alibi_slopes(heads), 16).values
    torch.testing.assert_close(expected.value.detach(), torch.tensor(values))


def test_unknown_recipe():
    with pytest.raises(ValueError, match="recipe must be 'paper' or 'recommended', got 'best'"):
        ModelConfig.recipe("best", **SIZES)
