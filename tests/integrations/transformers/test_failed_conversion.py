"""A failed conversion leaves the model and its config unchanged, at every point of failure."""

import sys

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig

from sigmoid_attention import NegLogEffectiveLength, NegLogLength
from sigmoid_attention.integrations.transformers import (
    PerHead,
    attention_modules,
    biases,
    config_entry,
    convert,
    extra_norms,
    patches,
    register,
    replace_bias,
    set_bias,
)
from tests.support.transformers.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["Llama"]
# The package has a function of this name.
CONVERT = sys.modules[convert.__module__]
OPTIONS = {
    "bias": PerHead(-2.0, linear=True),
    "centred_keys": True,
    "qk_norm": "rms",
    "layer_scale": 0.1,
}


def snapshot(model):
    """Everything that modules and configs hold, containers by content and the rest by identity."""

    def held(each):
        return {
            name: list(value.items()) if isinstance(value, dict) else
            set(value) if isinstance(value, set) else
            value if isinstance(value, str | int | float | list | None) else id(value)
            for name, value in vars(each).items()
        }  # fmt: skip

    configs = config_entry.model_configs(model)
    return [(type(each), held(each)) for each in [*model.modules(), *configs]]


class Injected(Exception):
    pass


def fail_at(monkeypatch, owner, name, call):
    """The function does its work, and in its call with this number fails afterwards."""
    real, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        answer = real(*args, **kwargs)
        calls.append(None)
        if len(calls) == call:
            raise Injected
        return answer

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (CONVERT, "find_attention_modules", 1),
        (CONVERT, "set_implementation", 1),
        (config_entry, "write", 1),
        (config_entry, "write", 2),
        (biases, "attach", 1),
        (biases, "attach", 2),
        (biases, "attach_centring", 2),
        (extra_norms, "attach", 1),
        (extra_norms, "attach", 2),
        (patches, "attach", 2),
        (patches, "keep_bias_in_fp32", 1),
        (config_entry, "declare", 1),
    ],
    ids=lambda value: "" if isinstance(value, type(sys)) else None,
)
def test_a_failure_at_any_step_is_undone(owner, name, call, monkeypatch):
    register()
    model = LLAMA.build().train()
    model.model.layers[0].eval()
    before, answer = snapshot(model), model(**LLAMA.batch()).logits
    fail_at(monkeypatch, owner, name, call)
    with pytest.raises(Injected):
        convert(model, **OPTIONS)
    assert snapshot(model) == before
    assert torch.equal(model(**LLAMA.batch()).logits, answer)
    monkeypatch.undo()
    convert(model, **OPTIONS)
    assert len(attention_modules(model)) == LLAMA.modules


@pytest.mark.parametrize("call", [1, 2])
def test_a_config_is_what_it_was(call, monkeypatch):
    config = ARCHITECTURES["CLIP"].build().config
    before = [(path, dict(vars(each))) for path, each in config_entry.config_tree(config)]
    # The first two calls are for the skeleton.
    fail_at(monkeypatch, config_entry, "write", call * 4 + 1)
    with pytest.raises(Injected):
        convert(config, bias=-3.0)
    assert [(path, dict(vars(each))) for path, each in config_entry.config_tree(config)] == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [{"bias": PerHead(-2.0)}, {"bias": -2.0, "qk_norm": "rms"}, {"bias": -2.0, "norm": "hybrid"}],
    ids=["bias", "qk_norm", "norm"],
)
def test_a_quantised_model_is_refused(options):
    plain = LLAMA.build()
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    before = snapshot(model)
    with pytest.raises(ValueError, match="quantised after its conversion, not before"):
        convert(model, **options)
    assert snapshot(model) == before


def test_a_bias_that_does_not_fit_takes_no_others_place():
    model = convert(LLAMA.build(), bias=PerHead(-2.0))
    before = snapshot(model)
    wrong = PerHead(NegLogEffectiveLength((0.5, 0.25, 0.125), n=16))
    module = model.model.layers[1].self_attn
    with pytest.raises(ValueError):
        replace_bias(module, wrong)
    with pytest.raises(ValueError):
        set_bias(model, wrong)
    assert snapshot(model) == before
    set_bias(model, NegLogLength(9))


def test_a_config_that_no_model_is_built_of_is_refused():
    with pytest.raises(ValueError, match="has no model for a PreTrainedConfig by itself"):
        convert(PreTrainedConfig())
