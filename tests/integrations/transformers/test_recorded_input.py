"""The recorded input of a module: in threads, nested calls, and after errors."""

import copy
import threading

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead, attention_modules
from sigmoid_attention.integrations.transformers import recorded_input as calls
from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES


@pytest.fixture
def model():
    made = checks.converted(ARCHITECTURES["Llama"], bias=PerHead(NegLogLength(8), linear=True))
    for module in attention_modules(made).values():
        torch.nn.init.normal_(module.sigmoid_bias.weight, std=0.3)
    yield made.eval()
    assert calls._calls.innermost is None


def attention(model):
    return next(iter(attention_modules(model).values()))


def batches(count):
    return [torch.randint(1, 16, (1, 5 + n)) for n in range(count)]


def test_threads_that_meet_in_one_module_get_their_own_biases(model):
    """None leaves before all have entered."""
    given, found = batches(3), {}
    right = [model(tokens).logits for tokens in given]
    together = threading.Barrier(3)

    def meet(*_):
        together.wait(20)

    hooks = [
        attention(model).q_proj.register_forward_hook(meet),
        attention(model).o_proj.register_forward_pre_hook(meet),
    ]

    def serve(number):
        with torch.no_grad():
            found[number] = model(given[number]).logits

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hook in hooks:
        hook.remove()
    for number, expected in enumerate(right):
        torch.testing.assert_close(found[number], expected)


def test_a_call_inside_of_a_call(model):
    outer, inner = batches(2)
    right = [model(tokens).logits for tokens in (outer, inner)]
    found = []

    def again(*_):
        hook.remove()
        found.append(model(inner).logits)

    hook = attention(model).k_proj.register_forward_hook(again)
    torch.testing.assert_close(model(outer).logits, right[0])
    torch.testing.assert_close(found[0], right[1])


@pytest.mark.parametrize("place", ["before", "inside", "after"])
def test_a_call_that_fails_leaves_nothing_behind(model, place):
    def fail(*_):
        raise ZeroDivisionError

    module = attention(model)
    hook = {
        "before": lambda: module.register_forward_pre_hook(fail, prepend=True),
        "inside": lambda: module.k_proj.register_forward_hook(fail),
        "after": lambda: module.register_forward_hook(fail),
    }[place]()
    (tokens,) = batches(1)
    with pytest.raises(ZeroDivisionError):
        model(tokens)
    assert calls._calls.innermost is None
    hook.remove()
    assert model(tokens).logits.isfinite().all()


@pytest.mark.parametrize("kind", list(CheckpointImpl), ids=lambda kind: kind.name)
@pytest.mark.parametrize("inside", [True, False], ids=["modules", "layers"])
def test_checkpoints_give_the_same_gradients(model, kind, inside):
    other, (tokens,) = copy.deepcopy(model), batches(1)
    for place, layer in enumerate(other.model.layers):
        if inside:
            layer.self_attn = checkpoint_wrapper(layer.self_attn, kind)
        else:
            other.model.layers[place] = checkpoint_wrapper(layer, kind)
    for each in (model, other):
        each(tokens, use_cache=False).logits.square().mean().backward()
    for expected, found in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, **checks.TOLERANCE)


def test_a_module_holds_nothing_of_a_call(model):
    module = attention(model)

    def held():
        return {name: id(value) for part in module.modules() for name, value in vars(part).items()}

    before = held()
    model(*batches(1))
    assert held() == before
