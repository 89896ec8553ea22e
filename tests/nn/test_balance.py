"""Load balancing: bias updates, also over processes, and losses against hand calculation."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from sigmoid_attention.nn import (
    LoadBalancer,
    Router,
    Routing,
    sequence_loss,
    switch_loss,
    z_loss,
)


def balanced(experts=4, rate=0.1):
    return Router(3, experts, top_k=1, balance_rate=rate)


def counted(router, counts):
    router.tokens_per_expert.copy_(torch.tensor(counts))
    return router


@pytest.mark.parametrize(
    "counts, signs",
    [
        ([5, 5, 5, 5], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([9, 1, 5, 5], [-1, 1, 0, 0]),
        ([8, 0, 0, 0], [-1, 1, 1, 1]),
        ([2**60 + 1, 2**60, 2**60, 2**60], [-1, 1, 1, 1]),
    ],
    ids=str,
)
def test_a_step_opposes_the_load_and_has_mean_zero(counts, signs):
    router = counted(balanced(), counts)
    LoadBalancer([router]).update()
    step = 0.1 * torch.tensor(signs, dtype=torch.float32)
    torch.testing.assert_close(router.correction_bias, step - step.mean())
    assert router.tokens_per_expert.tolist() == [0, 0, 0, 0]


def test_attached_it_updates_at_each_step_and_until_it_is_removed():
    model = torch.nn.ModuleList([balanced(rate=0.1), Router(3, 4, top_k=2), balanced(rate=0.2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = LoadBalancer.of(model).attach(optimizer)
    for router in (model[0], model[2]):
        counted(router, [4, 0, 0, 0])
    optimizer.step()
    assert model[0].correction_bias[0] == pytest.approx(-0.15)
    assert model[2].correction_bias[0] == pytest.approx(-0.3)
    handle.remove()
    counted(model[0], [4, 0, 0, 0])
    optimizer.step()
    assert model[0].correction_bias[0] == pytest.approx(-0.15)
    assert model[0].tokens_per_expert[0] == 4


def test_a_model_that_moved_is_still_followed():
    """Moving a module makes new buffers; a balancer that kept the old ones would change nothing."""
    router = balanced()
    balancer = LoadBalancer([router])
    router.double()
    counted(router, [4, 0, 0, 0])
    balancer.update()
    assert router.correction_bias[0] == pytest.approx(-0.15)


def test_an_uneven_router_becomes_even():
    """All tokens score expert 0 highest; the bias spreads them and does not change the weights."""
    router = Router(3, experts=4, top_k=1, balance_rate=0.005, intercept=True)
    x = torch.randn(256, 3)
    with torch.no_grad():
        router.intercept[0] = 2.0
    optimizer = torch.optim.SGD(router.parameters(), lr=0.0)
    LoadBalancer([router]).attach(optimizer)
    assert router(x).experts.eq(0).float().mean() > 0.8
    before = router(x).scores
    for _ in range(150):
        router(x)
        optimizer.step()
    load = router(x).experts.flatten().bincount(minlength=4) / 256
    assert load.max() < 0.35 and load.min() > 0.15
    assert torch.equal(router(x).scores, before)


def test_a_model_without_routers_to_balance_is_refused():
    with pytest.raises(ValueError, match="there is none to balance; a Router needs a balance_rate"):
        LoadBalancer.of(torch.nn.Linear(2, 2))


def _count_in_a_process(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    # Alone the first process would see expert 0 as crowded; together expert 1 is.
    routers = [
        counted(balanced(2), [[6, 2], [0, 9]][rank]),
        counted(balanced(3), [[1, 0, 0], [0, 0, 1]][rank]),
    ]
    LoadBalancer(routers).update()
    results.put([router.correction_bias.tolist() for router in routers])
    dist.destroy_process_group()


def test_counts_are_added_up_over_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked, as two processes that load torch afresh would take half a minute.
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=_count_in_a_process, args=(rank, port, results), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    first, second = results.get(), results.get()
    for process in processes:
        process.join()
    assert first == second
    torch.testing.assert_close(torch.tensor(first[0]), torch.tensor([0.1, -0.1]))
    # Two visits over three experts: those with one are above the mean of 2/3.
    step = torch.tensor([-0.1, 0.1, -0.1])
    torch.testing.assert_close(torch.tensor(first[1]), step - step.mean())


def routing(scores, experts, logits=None):
    weights = scores.gather(-1, experts)
    return Routing(scores if logits is None else logits, scores, experts, weights)


def by_hand(scores, experts):
    """E sum_e f_e P_e of tokens (N, E), in loops."""
    tokens, count = scores.shape
    top_k = experts.shape[-1]
    total = 0.0
    for e in range(count):
        f = sum(int(e in row.tolist()) for row in experts) / (tokens * top_k)
        p = sum(float(row[e] / row.sum()) for row in scores) / tokens
        total += count * f * p
    return total


@pytest.mark.parametrize("shape", [(1, 4, 3, 2), (3, 5, 7, 2), (2, 1, 2, 1)], ids=str)
def test_balance_losses_are_those_of_loops(shape):
    batch, tokens, count, top_k = shape
    scores = torch.rand(batch, tokens, count, dtype=torch.float64)
    experts = torch.rand(batch, tokens, count).topk(top_k).indices
    decided = routing(scores, experts)
    each = [by_hand(s, e) for s, e in zip(scores, experts, strict=True)]
    assert sequence_loss(decided).item() == pytest.approx(sum(each) / batch)
    together = by_hand(scores.flatten(0, 1), experts.flatten(0, 1))
    assert switch_loss(decided).item() == pytest.approx(together)


def test_even_loads_cost_one_and_a_crowd_costs_most():
    scores = torch.ones(1, 4, 4, dtype=torch.float64)
    even = torch.arange(4).view(1, 4, 1)
    assert switch_loss(routing(scores, even)) == sequence_loss(routing(scores, even)) == 1
    crowd = torch.zeros_like(even)
    crowded = torch.eye(4, dtype=torch.float64)[crowd[..., 0]]
    assert switch_loss(routing(crowded, crowd)) == 4


def test_the_sequence_loss_depends_on_the_load_within_each_sequence():
    """Each of two sequences uses one expert alone: even together, crowded each."""
    scores = torch.tensor([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])
    experts = torch.tensor([[[0]] * 3, [[1]] * 3])
    assert switch_loss(routing(scores, experts)) == 1
    assert sequence_loss(routing(scores, experts)) == 2


def test_the_gradient_of_a_balance_loss_lowers_the_score_of_the_crowded_expert():
    scores = torch.full((1, 3, 2), 0.5, requires_grad=True)
    for loss in (switch_loss, sequence_loss):
        (gradient,) = torch.autograd.grad(
            loss(routing(scores, torch.zeros(1, 3, 1).long())), scores
        )
        assert (gradient[..., 0] > 0).all() and (gradient[..., 1] < 0).all()


def test_the_z_loss_is_the_mean_squared_log_of_the_partition_sum():
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = sum(row.exp().sum().log() ** 2 for row in logits.flatten(0, 1)) / 6
    torch.testing.assert_close(z_loss(routing(logits, torch.zeros(2, 3, 1).long())), expected)


def test_a_sequence_loss_needs_sequences():
    with pytest.raises(ValueError, match=r"routing must be that of \(batch, tokens, dim\)"):
        sequence_loss(Router(4, 3, top_k=1)(torch.randn(5, 4)))
