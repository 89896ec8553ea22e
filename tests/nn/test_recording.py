"""Recorded routings: the calls, threads and checkpoints they come from, and their gradients."""

import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.nn import (
    DecoderLM,
    ModelConfig,
    MoEConfig,
    Router,
    record_routing,
    switch_loss,
    z_loss,
)

MIXTURE = MoEConfig(experts=4, hidden=6, top_k=2, normalize=True, balance_rate=0.1)


def plain(layer, x):
    return layer(x)


def twice(layer, x):
    return layer(x) + layer(2 * x)


def reentrant(run, *x):
    return checkpoint(run, *x, use_reentrant=True)


def not_reentrant(run, *x):
    return checkpoint(run, *x, use_reentrant=False)


# A call of one layer, in checkpoints and without.
CALLS = {
    "reentrant": (reentrant, plain),
    "not reentrant": (not_reentrant, plain),
    "reentrant inside of reentrant": (lambda f, x: reentrant(lambda x: reentrant(f, x), x), plain),
    "not reentrant inside of reentrant": (
        lambda f, x: reentrant(lambda x: not_reentrant(f, x), x),
        plain,
    ),
    "reentrant inside of not reentrant": (
        lambda f, x: not_reentrant(lambda x: reentrant(f, x), x),
        plain,
    ),
    "one layer twice": (lambda f, x: reentrant(lambda x: twice(f, x), x), twice),
}
LOSSES = {
    "balance": lambda y, routings: 0 * y.sum() + sum(map(switch_loss, routings)),
    "both": lambda y, routings: y.square().sum() + sum(map(z_loss, routings)),
    "weights": lambda y, routings: y.sum() + sum(r.weights.square().sum() for r in routings),
    "one of many": lambda y, routings: y.sum() + z_loss(routings[-1]),
    "none": lambda y, routings: y.square().sum(),
}


def mixtures():
    return torch.nn.Sequential(*(MIXTURE.build(8) for _ in range(3))).double()


def run(model, x, call):
    for layer in model:
        x = call(layer, x)
    return x


def gradients(model, loss_of, call):
    """Of the input and of all parameters, and how many routings were listed."""
    model.zero_grad()
    x = torch.linspace(-1, 1, 80, dtype=torch.float64).view(2, 5, 8).requires_grad_()
    with record_routing(model) as routings:
        loss_of(run(model, x, call), routings).backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())], len(routings)


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
def test_gradients_are_those_without_a_checkpoint(loss_of, calls):
    model = mixtures()
    actual, expected = (gradients(model, loss_of, call) for call in calls)
    assert actual[1] == expected[1] == (6 if calls[1] is twice else 3)
    torch.testing.assert_close(actual[0], expected[0])


def test_several_batches_in_one_backward_pass():
    model, actual = mixtures(), []
    batches = torch.randn(3, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    for call in (plain, reentrant):
        model.zero_grad()
        with record_routing(model) as routings:
            total = sum(run(model, x, call).square().sum() for x in batches)
        (total + sum(n * z_loss(routing) for n, routing in enumerate(routings))).backward()
        actual.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(actual[1], actual[0])


@pytest.mark.parametrize("call", [reentrant, not_reentrant], ids=["reentrant", "not reentrant"])
def test_a_decoder_over_checkpoints_has_the_loss_and_the_gradients_of_one_without(call):
    config = ModelConfig.recipe(
        "recommended", vocab_size=11, dim=8, layers=2, num_heads=2, max_seq_len=16,
        moe=MoEConfig(experts=4, hidden=6, top_k=2, switch_loss=0.5, z_loss=0.1),
    )  # fmt: skip
    model, tokens = DecoderLM(config), torch.randint(11, (2, 6))
    losses, actual = [], []
    for wrap in (None, call):
        model.zero_grad()
        for block in model.blocks if wrap else ():
            forward = block.forward
            block.forward = lambda x, wrap=wrap, forward=forward, **_: wrap(forward, x)
        losses.append(model.loss(tokens, tokens))
        losses[-1].backward()
        actual.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(actual[1], actual[0])


def test_equal_batches_and_routings_of_another_step_are_distinguished():
    model, actual, old = mixtures(), [], []
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    for call in (plain, reentrant, reentrant):
        model.zero_grad()
        with record_routing(model) as routings:
            total = sum(run(model, batch, call).square().sum() for batch in (x, x))
        (total + sum(n * z_loss(routing) for n, routing in enumerate(routings))).backward()
        actual.append([p.grad.clone() for p in model.parameters()])
        old.append(routings)
    torch.testing.assert_close(actual[1], actual[0])
    torch.testing.assert_close(actual[2], actual[0])


def test_a_retained_graph_can_be_used_twice():
    model, x = mixtures()[0], torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    with record_routing(model) as routings:
        y = reentrant(model, x)
    loss = y.sum() + z_loss(routings[0])
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    torch.testing.assert_close([p.grad / 2 for p in model.parameters()], once)


@pytest.mark.parametrize("order", ["alone", "before the other loss", "after the other loss"])
def test_a_gradient_that_would_be_lost_is_refused(order):
    model, x = mixtures()[0], torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    with record_routing(model) as routings:
        y = reentrant(model, x)
    if order.startswith("after"):
        y.sum().backward()
    with pytest.raises(ValueError, match="use_reentrant=True must come in one backward pass"):
        switch_loss(routings[0]).backward()


def test_a_recorded_routing_without_a_loss_costs_no_gradient():
    model, x = mixtures()[0], torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    with record_routing(model) as routings:
        reentrant(model, x).sum().backward()
    assert len(routings) == 1 and routings[0].chosen().sum() == 10
    for off in (torch.no_grad(), torch.inference_mode()):
        with off, record_routing(model) as routings:
            model(x)
        assert not routings[0].scores.requires_grad


def test_recording_ends_with_its_block():
    model = torch.nn.ModuleList(Router(4, experts=3, top_k=k) for k in (1, 2))
    x = torch.randn(5, 4)
    with record_routing(model) as routings:
        for router in model:
            router(x)
    model[0](x)
    assert [routing.experts.shape[-1] for routing in routings] == [1, 2]
    assert routings[1].weights.requires_grad


def test_only_calls_of_the_same_thread_are_recorded():
    router, counts = Router(4, experts=3, top_k=1), {}
    entered, left = threading.Barrier(2), threading.Barrier(2)

    def serve(name, calls):
        with record_routing(router) as routings:
            entered.wait(10)
            for _ in range(calls):
                router(torch.randn(calls, 4))
            left.wait(10)
        counts[name] = [len(routing.scores) for routing in routings]

    threads = [threading.Thread(target=serve, args=each) for each in (("a", 2), ("b", 3))]
    with record_routing(router) as outer:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counts == {"a": [2, 2], "b": [3, 3, 3]} and not outer


def test_recordings_may_be_nested_and_of_other_models():
    left, right = Router(4, experts=3), Router(4, experts=2)
    with record_routing(left) as outer, record_routing(right) as inner:
        with record_routing(left) as again:
            left(torch.randn(5, 4))
        left(torch.randn(6, 4))
        right(torch.randn(7, 4))
    lengths = [[len(routing.scores) for routing in each] for each in (outer, inner, again)]
    assert lengths == [[5, 6], [7], [5]]


def test_a_recording_that_ends_in_an_error_ends():
    router = Router(4, experts=3)
    with pytest.raises(ZeroDivisionError), record_routing(router) as routings:
        raise ZeroDivisionError
    router(torch.randn(5, 4))
    assert not routings


@pytest.mark.parametrize("fullgraph", [True, False], ids=["fullgraph", "graphs"])
def test_a_model_that_was_compiled_before_is_listed(fullgraph):
    router, x = Router(4, experts=3, top_k=1), torch.randn(5, 4)
    compiled = torch.compile(router, fullgraph=fullgraph, backend="aot_eager")
    compiled(x)
    for _ in range(2):
        with record_routing(router) as routings:
            compiled(x)
        assert len(routings) == 1 and routings[0].scores.requires_grad
    compiled(x)
    assert len(routings) == 1
