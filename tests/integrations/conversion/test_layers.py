"""A stream of hidden states equals the model's own states between its layers."""

import pytest
import torch
from torch import nn

from sigmoid_attention.integrations.conversion import LayerStream, Student, attention_layers
from tests.support.conversion.models import KINDS, ids


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_hidden_states_equal_those_of_the_model(kind):
    student = Student(KINDS[kind](), form="linear", gain=1.5)
    model = student.model
    layers = attention_layers(model, list(student.modules))
    assert len(layers) == 2
    batches = [{"input_ids": ids()}, {"input_ids": ids(batch=1, length=7)}]
    stream = LayerStream(model, layers, batches)
    seen: list[list[torch.Tensor]] = [[], []]
    for index, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda _m, _a, out, index=index: seen[index].append(
                out if isinstance(out, torch.Tensor) else out[0]
            )
        )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for index in range(2):
        expected, seen[index] = seen[index], []
        streamed = stream.outputs(index)
        assert all(a.equal(b) for a, b in zip(streamed, expected, strict=True))
        stream.hidden = streamed


def test_gradients_reach_the_layer():
    student = Student(KINDS["llama"](), form="linear", gain=1.5)
    layers = attention_layers(student.model, list(student.modules))
    stream = LayerStream(student.model, layers, [{"input_ids": ids()}])
    stream.output(0, 0, stream.hidden[0]).square().sum().backward()
    assert layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert layers[1].self_attn.q_proj.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_answers_the_same_again(kind):
    student = Student(KINDS[kind](), form="linear", gain=1.5)
    layers = attention_layers(student.model, list(student.modules))
    stream = LayerStream(student.model, layers, [{"input_ids": ids()}])
    first = stream.outputs(0)[0]
    assert stream.outputs(0)[0].equal(first)
    for _ in range(2):
        stream.output(0, 0, stream.hidden[0]).square().sum().backward()


def test_layers_that_do_not_follow_one_another_are_refused():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

        def forward(self, x):
            return self.blocks[1](self.blocks[0](x) + x)

    model = Skipping()
    with pytest.raises(ValueError, match="give --layer-steps 0"):
        LayerStream(model, list(model.blocks), [{"x": torch.ones(1, 3)}])


def test_attention_outside_of_layers_is_refused():
    with pytest.raises(ValueError, match="pool is not part of a numbered layer"):
        attention_layers(nn.ModuleDict({"pool": nn.Identity()}), ["pool"])
