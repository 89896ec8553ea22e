"""The attention weights of a converted model: requests, saving and gradients."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from sigmoid_attention.integrations.transformers import PerHead, convert
from tests.support.transformers import checks, oracle
from tests.support.transformers.architectures import ARCHITECTURES

LLAMA = ARCHITECTURES["Llama"]


def returned(model):
    out = model(**LLAMA.batch())
    return out.attentions


def test_a_config_asks_for_them_before_and_after_a_conversion():
    before = LLAMA.build()
    before.set_attn_implementation("eager")
    before.config.output_attentions = True
    after = convert(LLAMA.build())
    assert returned(after) is None
    after.config.output_attentions = True
    for model in (convert(before), after):
        assert [x.shape for x in returned(model)] == [(2, 4, 11, 11)] * 2
    after.config.output_attentions = False
    assert returned(after) is None


def test_a_config_is_converted_that_asks_for_them():
    config = LLAMA.build().config
    config._attn_implementation = "eager"
    config.output_attentions = True
    assert len(returned(LlamaForCausalLM(convert(config)).eval())) == 2


@pytest.mark.parametrize("options", [{}, {"attn_implementation": "eager"}], ids=["alone", "eager"])
def test_from_pretrained_asks_for_them(options, tmp_path):
    """transformers tells those who want attentions to take eager: the model stays a sigmoid."""
    model = convert(LLAMA.build())
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, output_attentions=True, **options)
    assert again.config._attn_implementation == "sigmoid"
    expected = model(**LLAMA.batch(), output_attentions=True).attentions
    torch.testing.assert_close(returned(again), expected, **checks.TOLERANCE)


def test_output_attentions_of_a_config_is_saved_and_loaded(tmp_path):
    model = convert(LLAMA.build())
    model.config.output_attentions = True
    model.generation_config.output_attentions = None
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.output_attentions
    torch.testing.assert_close(returned(again), returned(model), **checks.TOLERANCE)


def test_other_models_still_need_eager_for_them():
    model = LLAMA.build()
    with pytest.raises(ValueError, match="not supported when using the `attn_implementation`"):
        model.config.output_attentions = True
    with pytest.raises(ValueError, match="belongs to a model with sigmoid"):
        convert(model).set_attn_implementation("eager")


@pytest.mark.parametrize("name", ["Llama", "BERT", "T5", "Swin"])
def test_gradients_pass_through_them(name):
    """As in the definition: of a loss of the answer, and of one that has the attentions in it."""
    architecture = ARCHITECTURES[name]
    model = checks.converted(architecture, bias=PerHead(-2.0))
    gradients = []
    for each in (model, oracle.twin(architecture.build(), model)):
        out = each(**architecture.batch(), output_attentions=True)
        attentions = out.decoder_attentions if name == "T5" else out.attentions
        answer = out.logits if "logits" in out else out.last_hidden_state
        loss = answer.square().mean() + sum(x.square().mean() for x in attentions)
        parameter = dict(each.named_parameters())
        leaves = [*attentions, *(parameter[n] for n in parameter if n.endswith(("_proj.weight",)))]
        gradients.append(torch.autograd.grad(loss, leaves))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)


def test_dropout_acts_on_them_after_they_are_returned():
    model = convert(LLAMA.build(), bias=-2.0).train()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    first, second = (model(**LLAMA.batch(), output_attentions=True) for _ in range(2))
    assert torch.equal(first.attentions[0], second.attentions[0])
    assert not torch.equal(first.logits, second.logits)
