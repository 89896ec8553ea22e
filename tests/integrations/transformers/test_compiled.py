"""A compiled training step gives the same loss and gradients, for every kind of bias."""

import copy
import warnings

import pytest
import torch

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead
from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES

# `make test` has one graph of a converted model in test_architectures.
pytestmark = pytest.mark.slow

CONVERSIONS = {
    "number": {"bias": NegLogLength(8)},
    "per head": {"bias": PerHead(NegLogLength(8))},
    "linear": {"bias": PerHead(NegLogLength(8), linear=True)},
    "centred": {"bias": PerHead(NegLogLength(8)), "centred_keys": True},
}


@pytest.mark.parametrize("bias", CONVERSIONS)
@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_a_training_step_is_one_graph(name, bias):
    model = checks.converted(ARCHITECTURES[name], **CONVERSIONS[bias])
    other = copy.deepcopy(model)
    batch = ARCHITECTURES[name].batch()
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for each in (model, compiled):
        checks.answer(each, batch).square().mean().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(theirs[name].grad, parameter.grad, **checks.TOLERANCE)


@pytest.mark.parametrize("bias", ["per head", "linear", "centred"])
def test_checkpointed_layers_give_the_same_gradients(bias):
    model = checks.converted(ARCHITECTURES["Llama"], **CONVERSIONS[bias]).train()
    other = copy.deepcopy(model)
    # Older versions know it by its older name.
    newer = getattr(other, "activation_checkpointing_enable", None)
    (newer or other.gradient_checkpointing_enable)()
    batch = ARCHITECTURES["Llama"].batch()
    for each in (model, other):
        each(**batch, use_cache=False).logits.square().mean().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad, **checks.TOLERANCE)


# Dynamo looks at the gradient of what a layer is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("Llama", "number"),
        ("Llama", "per head"),
        ("Llama", "linear"),
        ("Mistral", "linear"),
        ("BERT", "per head"),
        ("Llama", "centred"),
        ("ViT", "number"),
    ],
)
def test_each_layer_is_one_graph_by_itself(name, bias):
    """As `accelerate` compiles regions and FSDP its blocks; with a mask, and with gradients."""
    architecture = ARCHITECTURES[name]
    model = checks.converted(architecture, **CONVERSIONS[bias])
    batch = checks.batches(architecture)[-1]
    plain = checks.answer(model, batch)
    torch._dynamo.reset()
    for part, module in model.named_modules():
        if part.endswith(("layer.0", "layers.0", "layer.1", "layers.1")):
            module.compile(fullgraph=True, backend="eager")
    for _ in range(2):
        actual = checks.answer(model, batch)
        torch.testing.assert_close(actual, plain, **checks.TOLERANCE)
    actual.square().mean().backward()


def test_a_layer_compiled_by_itself_still_gives_attentions_when_they_are_asked_for():
    """Their collector breaks the graph, as with eager; no answer is lost."""
    model = checks.converted(ARCHITECTURES["Llama"])
    batch = ARCHITECTURES["Llama"].batch()
    torch._dynamo.reset()
    model.model.layers[0].compile(backend="eager")
    with torch.no_grad():
        assert model(**batch).attentions is None
        out = model(**batch, output_attentions=True)
    assert [x.shape for x in out.attentions] == [(2, 4, 11, 11)] * 2


def test_a_trace_is_the_model():
    """TorchScript takes a converted model as a trace."""
    model = checks.converted(ARCHITECTURES["BERT"])
    tokens = ARCHITECTURES["BERT"].batch()["input_ids"]
    whole = model(tokens).last_hidden_state
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, tokens, strict=False)
        torch.testing.assert_close(traced(tokens)["last_hidden_state"], whole, **checks.TOLERANCE)
