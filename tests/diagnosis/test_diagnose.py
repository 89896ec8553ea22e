"""Each planted fault is named, with its place, and nothing else; healthy models have no finding."""

import pytest
import timm
import torch
from torch import nn

from sigmoid_attention import NegLogLength
from sigmoid_attention.diagnosis import Evidence, diagnose, rules
from sigmoid_attention.integrations.conversion import Student
from sigmoid_attention.integrations.timm import convert as convert_timm
from sigmoid_attention.integrations.transformers import PerHead, convert
from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.training.optimizer import TrainConfig, decoupled_adamw
from tests.support.conversion.models import llama

N, HEADS = 24, 4
SIZES = {"vocab_size": 31, "dim": 32, "layers": 2, "num_heads": HEADS, "max_seq_len": N}


def decoder(**changes) -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(ModelConfig.recipe("recommended", **SIZES | changes))


def tokens(length=N, batch=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, SIZES["vocab_size"], (batch, length), generator=generator)


def faults(model, *, longer=(), **options):
    findings = diagnose(model, [tokens(), tokens()], longer=longer, **options).findings
    return [(finding.fault, finding.where) for finding in findings]


@pytest.mark.parametrize("recipe", ["recommended", "paper"])
@pytest.mark.parametrize("position", ["rope+alibi", "rope", "alibi", "sincos", "none"])
def test_a_healthy_model_has_no_finding(recipe, position):
    torch.manual_seed(0)
    model = DecoderLM(ModelConfig.recipe(recipe, **SIZES, position=position))
    optimizer = decoupled_adamw(model, TrainConfig(steps=1, weight_decay=0.1))
    # With absolute positions the mass drifts before any training.
    longer = [] if position == "sincos" else [tokens(2 * N)]
    assert faults(model, longer=longer, optimizer=optimizer) == []


def test_a_bias_of_zero_makes_the_mass_too_large_and_the_shift_mends_it():
    model = decoder(bias=0.0, bias_offset=0.0, learn_bias=False, position="rope")
    diagnosis = diagnose(model, [tokens()])
    assert [finding.fault for finding in diagnosis.findings] == ["mass", "mass"]
    first = diagnosis.evidence[0]
    assert first.mass_H.mean() > 4 and f"Lower the bias by {-first.shift:.1f}" in str(
        diagnosis.findings[0]
    )
    # The rows that the shift is found on are not all of them.
    weights = model.blocks[0].attention.weights(torch.randn(2, N, SIZES["dim"]))
    lowered = (weights.logit() + Evidence.of("", [weights]).shift).sigmoid() * (weights > 0)
    assert lowered.sum(-1).mean() == pytest.approx(1, rel=0.05)


def test_saturated_and_dead_heads_are_named():
    model = decoder()
    bias = _bias(model, 1)
    with torch.no_grad():
        bias[2], bias[3] = 12.0, -30.0
    name = "blocks.1.attention"
    assert faults(model) == [("saturated", f"{name}, head 2"), ("dead", f"{name}, head 3")]


def test_heads_that_do_the_same_are_named():
    model = decoder(position="rope", qk_norm=None)
    layer = model.blocks[0].attention
    with torch.no_grad():
        for projection in (layer.query, layer.key):
            rows = projection.weight.mul_(3).unflatten(0, (HEADS, -1))
            rows[3] = rows[1]
    assert faults(model) == [("alike", "blocks.0.attention, heads 1, 3")]


def test_a_key_that_every_query_weighs_is_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.attention = Attention(8, 2, max_seq_len=N, bias=NegLogLength(N), linear_bias=True)

        def forward(self, x):
            return self.attention(x)

    model = Model()
    with torch.no_grad():
        for projection in (model.attention.query, model.attention.key):
            projection.weight.zero_()
            projection.bias.zero_()
        model.attention.query.bias[:4] = 2.0
        model.attention.key.weight[:4, 0] = 3.0
    x = torch.randn(2, N, 8) * 0.1
    x[:, 5, 0] = 2.0
    findings = diagnose(model, [x]).findings
    assert [(finding.fault, finding.where) for finding in findings] == [
        ("common key", "attention, head 0")
    ]
    assert "the key at place 5" in findings[0].said


@pytest.mark.parametrize("grows", [True, False])
def test_a_mass_that_drifts_beyond_the_trained_length_is_named(grows):
    def weights(length):
        place = torch.arange(length)
        distance = place[:, None] - place
        steady = 1 / (place[:, None] + 1.0)
        weights_NN = torch.where(distance < N, steady, steady * 20) if grows else steady
        return weights_NN.masked_fill(distance < 0, 0).expand(2, HEADS, length, length)

    at_length, beyond = (Evidence.of("layer", [weights(length)]) for length in (N, 2 * N))
    findings = [(x.fault, x.where) for x in rules.drift(at_length, beyond)]
    assert findings == ([("drift", "layer, heads 0, 1, 2, 3")] if grows else [])


def test_what_holds_a_learned_bias_back_is_named():
    model = decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    names = [f"blocks.{layer}.attention.bias.bias.value" for layer in (0, 1)]
    assert faults(model, optimizer=optimizer) == [("decayed bias", name) for name in names]
    _module(model, 1).value.data = _module(model, 1).value.data.bfloat16()
    assert faults(model) == [("narrow bias", names[1])]


def _module(model, layer):
    return model.blocks[layer].attention.bias.bias


def _bias(model, layer):
    return _module(model, layer).value


@pytest.mark.parametrize("bias, expected", [(NegLogLength(N), []), (PerHead(3.0), ["mass"] * 2)])
def test_models_of_transformers(bias, expected):
    model = convert(llama(), bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.1)
    before = [model(tokens()).logits]
    assert [fault for fault, _ in faults(model)] == expected
    torch.testing.assert_close(model(tokens()).logits, before[0], rtol=0, atol=0)


def test_the_student_of_a_conversion_keeps_its_operator():
    student = Student(llama(), form="linear", gain=1.5, annealed="mass")
    operators = [module.sigmoid_operator for module in student.modules.values()]
    (first, *_) = diagnose(student.model, [tokens()]).evidence
    # Divided by its mass times the gain, which the output projection multiplies.
    torch.testing.assert_close(1.5 * first.mass_H, torch.ones(4), rtol=1e-3, atol=1e-3)
    assert [module.sigmoid_operator for module in student.modules.values()] == operators


@pytest.mark.parametrize("bias, expected", [(NegLogLength(17), []), (0.0, ["mass"] * 2)])
def test_models_of_timm(bias, expected):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, embed_dim=32, num_heads=4, depth=2, num_classes=3
    )
    model = convert_timm(model, bias)
    findings = diagnose(model, [torch.randn(2, 3, 64, 64)]).findings
    assert [finding.fault for finding in findings] == expected
    assert all(block.attn.fused_attn for block in model.blocks)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="model must be a module of torch, got list"):
        diagnose([], [tokens()])
    with pytest.raises(ValueError, match="batches must have at least one batch, got none"):
        diagnose(decoder(), [])
    with pytest.raises(ValueError, match="this DecoderLM has no sigmoid attention"):
        diagnose(decoder(activation="softmax"), [tokens()])
    with pytest.raises(ValueError, match="this Linear has no sigmoid attention"):
        diagnose(nn.Linear(2, 2), [torch.randn(2)])
