"""Converted models under hooks and wrappers of modules, and in other dtypes."""

import copy

import accelerate
import pytest
import torch
import transformers as tf
from torch.func import functional_call, grad, vmap

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead, attention_modules, convert
from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES

CONVERSIONS = {
    "number": {"bias": NegLogLength(8)},
    "per head": {"bias": PerHead(NegLogLength(1000))},
    "buffer": {"bias": PerHead(NegLogLength(1000), learned=False)},
    "linear": {"bias": PerHead(NegLogLength(1000), linear=True)},
    "centred": {"bias": PerHead(NegLogLength(8)), "centred_keys": True},
}
each_bias = pytest.mark.parametrize("bias", CONVERSIONS.values(), ids=CONVERSIONS)


def converted(bias, **options):
    model = checks.converted(ARCHITECTURES["Llama"], **bias, **options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("sigmoid_bias.weight"):
            parameter.data *= 0.05
    return model


def tokens(rows=2):
    return torch.randint(1, 16, (rows, 7))


def biases(model):
    """What is in the state dict of them."""
    return {name: value for name, value in model.state_dict().items() if "sigmoid_bias" in name}


@each_bias
def test_offloaded_as_in_place(bias):
    model, ids = converted(bias, qk_norm="rms", layer_scale=0.5, norm="hybrid"), tokens()
    with torch.no_grad():
        expected = model(ids).logits
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert torch.equal(model(ids).logits, expected)


@each_bias
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_dynamically(bias):
    model, ids = converted(bias, qk_norm="rms", layer_scale=0.5, norm="hybrid"), tokens()
    expected = model(ids).logits
    kinds = {torch.nn.Linear}
    quantised = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)
    assert (quantised(ids).logits - expected).norm() < 0.5 * expected.norm()


@each_bias
def test_gradients_for_each_sample(bias):
    model, ids = converted(bias).double(), tokens(3)
    parameters = dict(model.named_parameters())

    def loss(parameters, row):
        return functional_call(model, parameters, (row[None],), {"use_cache": False})[
            "logits"
        ].logsumexp((0, 1, 2))

    grads = vmap(grad(loss), (None, 0))(parameters, ids)
    for row, sequence in enumerate(ids):
        model.zero_grad()
        loss(parameters, sequence).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(grads[name][row], parameter.grad)


CASTS = {
    "bfloat16()": lambda model: model.bfloat16(),
    "half()": lambda model: model.half(),
    "to(bfloat16)": lambda model: model.to(torch.bfloat16),
    "of a copy": lambda model: copy.deepcopy(model).to(dtype=torch.bfloat16),
    "of a layer": lambda model: (model.model.layers[0].bfloat16(), model)[1],
}


@each_bias
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_casts_change_no_bit_of_a_bias(bias, cast):
    model = converted(bias)
    before = {name: value.clone() for name, value in biases(model).items()}
    model = cast(model)
    for name, value in biases(model).items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])
    assert model.model.layers[0].self_attn.q_proj.weight.dtype != torch.float32
    assert model.double()(tokens()).logits.dtype == torch.float64


@each_bias
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_checkpoints_come_back_in_fp32(bias, stored, tmp_path):
    model = converted(bias)
    before = {name: value.clone() for name, value in biases(model).items()}
    if stored != torch.float32:
        state = {name: value.to(stored) for name, value in model.state_dict().items()}
        model.save_pretrained(tmp_path, state_dict=state)
    else:
        model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, value in biases(loaded).items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name].to(stored).float())
    assert loaded.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    assigned = converted(bias)
    assigned.load_state_dict(
        {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}, assign=True
    )
    assert all(value.dtype == torch.float32 for value in biases(assigned).values())


@each_bias
def test_a_model_that_is_built_in_bfloat16_has_biases_in_fp32(bias, tmp_path):
    parent = ARCHITECTURES["Llama"].build()
    parent.save_pretrained(tmp_path)
    config = convert(tf.AutoConfig.from_pretrained(tmp_path), **bias)
    model = type(parent).from_pretrained(tmp_path, config=config, dtype=torch.bfloat16)
    assert all(value.dtype == torch.float32 for value in biases(model).values())
    assert len(attention_modules(model)) == len(model.model.layers)
    torch.set_default_dtype(torch.bfloat16)
    try:
        built = type(parent)(config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(value.dtype == torch.float32 for value in biases(built).values())


def test_an_unconverted_model_of_the_class_is_cast_as_ever():
    converted(CONVERSIONS["per head"])
    other = ARCHITECTURES["Llama"].build().bfloat16()
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}


class Adapted(torch.nn.Module):
    """A linear layer with an addition of rank 2, which `merged` puts into its weight."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merged(self):
        self.base.weight.data += self.up.weight @ self.down.weight
        return self.base


NAMES = {
    "Llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "BERT": ("query", "key", "dense"),
}


@pytest.mark.parametrize("name", NAMES)
def test_norms_and_gains_act_on_what_takes_a_projections_place(name):
    architecture = ARCHITECTURES[name]
    options = dict(qk_norm="rms", layer_scale=0.5, norm="hybrid")
    model, batch = checks.converted(architecture, **options).eval(), architecture.batch()
    before = checks.answer(model, batch)

    def replace(kind, by):
        for parent in list(model.modules()):
            for child_name, child in list(parent.named_children()):
                if child_name in NAMES[name] and type(child) is kind:
                    setattr(parent, child_name, by(child))

    with torch.no_grad():
        replace(torch.nn.Linear, Adapted)
        adapted = checks.answer(model, batch)
        replace(Adapted, Adapted.merged)
        merged = checks.answer(model, batch)
    assert not torch.allclose(adapted, before, atol=1e-3)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
