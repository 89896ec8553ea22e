"""A training step as one graph: the same loss and gradients, whatever kind the biases are of."""

import copy

import pytest
import torch

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead
from tests.integrations.transformers import checks
from tests.integrations.transformers.architectures import ARCHITECTURES

BIASES = {
    "number": NegLogLength(8),
    "per head": PerHead(NegLogLength(8)),
    "linear": PerHead(NegLogLength(8), linear=True),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_a_training_step_is_one_graph(name, bias):
    model = checks.converted(ARCHITECTURES[name], bias=BIASES[bias])
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


@pytest.mark.parametrize("linear", [False, True], ids=["per-head", "linear"])
def test_checkpointed_layers_give_the_same_gradients(linear):
    model = checks.converted(ARCHITECTURES["Llama"], bias=PerHead(-2.0, linear=linear)).train()
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
