"""Routers: affinities, gates, the choice with groups and bias, and errors for wrong arguments."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.mixtures.gates import GATES
from sigmoid_attention.mixtures.scores import SCORES
from sigmoid_attention.nn import (
    Router,
    sequence_loss,
    switch_loss,
    z_loss,
)
from sigmoid_attention.nn.router import AFFINITIES, ROUTER_GATES
from tests.support.moe_oracle import deepseek_choice


def parameters_of_score(router):
    """The router's parameters as `sigmoid_attention.mixtures.scores` has them, (E, F)."""
    parts = []
    if router.affinity.endswith("quadratic"):
        symmetric = (router.quadratic + router.quadratic.mT) / 2
        row, column = torch.triu_indices(router.dim, router.dim)
        # A pair off the diagonal stands there once for twice here, and with a factor of sqrt 2.
        factor = torch.where(row == column, 1.0, 2.0**0.5).double()
        parts.append(symmetric[:, row, column] * factor)
    if router.affinity != "partially_quadratic":
        parts.append(router.weight)
    parts.append(torch.zeros(router.experts, 1, dtype=torch.float64))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_affinities_are_the_scores_of_the_mixtures(affinity):
    router = Router(5, experts=3, affinity=affinity, intercept=True, temperature=1.7).double()
    torch.nn.init.normal_(router.intercept)
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    score = SCORES[affinity].shape(parameters_of_score(router), x) + router.intercept
    torch.testing.assert_close(router(x).logits, score / 1.7)


@pytest.mark.parametrize("gate", ROUTER_GATES)
def test_dense_routing_is_the_gate_of_the_mixtures_for_all_experts(gate):
    router = Router(5, experts=3, gate=gate).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    routing = router(x)
    torch.testing.assert_close(routing.weights, GATES[gate].weights(x @ router.weight.T))
    assert routing.experts.tolist() == [[0, 1, 2]] * 4
    assert torch.equal(routing.scores, routing.weights)


@pytest.mark.parametrize("gate", ROUTER_GATES)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
def test_top_k_takes_the_highest_scores_and_their_weights(gate, normalize):
    router = Router(6, experts=7, top_k=3, gate=gate, normalize=normalize, route_scale=2.5)
    routing = router(torch.randn(2, 5, 6))
    best = routing.scores.sort(-1, descending=True).values[..., :3]
    chosen = routing.scores.gather(-1, routing.experts)
    torch.testing.assert_close(chosen.sort(-1, descending=True).values, best)
    total = chosen.sum(-1, keepdim=True) + 1e-20 if normalize else torch.ones(2, 5, 1)
    torch.testing.assert_close(routing.weights, 2.5 * chosen / total)


@pytest.mark.parametrize(
    "experts, groups, top_groups, top_k",
    [(8, 4, 2, 3), (9, 3, 1, 3), (6, 6, 2, 2), (12, 2, 2, 5)],
    ids=lambda n: str(n),
)
def test_groups_are_chosen_by_their_two_best(experts, groups, top_groups, top_k):
    router = Router(
        5, experts, top_k, groups=groups, top_groups=top_groups, balance_rate=0.1
    ).double()
    router.correction_bias.copy_(0.3 * torch.randn(experts))
    routing = router(torch.randn(40, 5, dtype=torch.float64))
    for scores, visits in zip(routing.scores, routing.experts, strict=True):
        expected = deepseek_choice(scores, router.correction_bias, groups, top_groups, top_k)
        assert set(visits.tolist()) == expected


def test_the_bias_moves_the_choice_and_never_the_weights():
    router = Router(4, experts=3, top_k=1, balance_rate=0.1)
    router.correction_bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    routing = router(torch.randn(6, 4))
    assert routing.experts.unique().tolist() == [1]
    torch.testing.assert_close(routing.weights, routing.scores[:, 1:2])


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_scores_are_computed_in_float32_or_wider(dtype, expected):
    router = Router(64, experts=4, top_k=2, balance_rate=0.1).to(dtype)
    x = torch.randn(8, 64, dtype=dtype)
    routing = router(x)
    assert {part.dtype for part in (routing.logits, routing.scores, routing.weights)} == {expected}
    exact = x.double() @ router.weight.double().T
    torch.testing.assert_close(routing.logits.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x).logits, routing.logits)


def test_the_bias_stays_in_float32_when_the_model_does_not():
    router = Router(4, experts=3, top_k=1, balance_rate=0.1).bfloat16()
    assert router.weight.dtype == torch.bfloat16
    assert router.correction_bias.dtype == torch.float32


@pytest.mark.parametrize("affinity", AFFINITIES)
@pytest.mark.parametrize("gate", ROUTER_GATES)
def test_gradients_reach_every_parameter(affinity, gate):
    router = Router(5, experts=3, top_k=2, affinity=affinity, gate=gate, intercept=True).double()
    routing = router(torch.randn(9, 5, dtype=torch.float64))
    (routing.weights * torch.randn(9, 2)).sum().backward()
    for name, parameter in router.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_a_token_of_nan_leaves_the_others_alone():
    router = Router(4, experts=6, top_k=2, groups=3, top_groups=2, normalize=True)
    x = torch.randn(3, 4)
    clean = router(x)
    x[1] = torch.nan
    routing = router(x)
    assert routing.weights[1].isnan().all() and routing.experts.max() < 6
    for kept in (0, 2):
        assert torch.equal(routing.weights[kept], clean.weights[kept])
        assert torch.equal(routing.experts[kept], clean.experts[kept])


def test_far_scores_neither_overflow_nor_divide_by_zero():
    for gate in ROUTER_GATES:
        router = Router(2, experts=3, top_k=2, gate=gate, normalize=True)
        torch.nn.init.constant_(router.weight, 1.0)
        for size in (-1e4, 1e4):
            x = torch.full((2, 2), size, requires_grad=True)
            weights = router(x).weights
            weights.sum().backward()
            assert weights.isfinite().all() and x.grad.isfinite().all(), (gate, size)


class TestCounting:
    """What a router with a balance rate counts, for the balancer."""

    def router(self):
        return Router(4, experts=3, top_k=2, balance_rate=0.1)

    def test_visits_of_training_are_added_up(self):
        router, x = self.router(), torch.randn(2, 5, 4)
        visits = router(x).experts.flatten().bincount(minlength=3)
        assert router.tokens_per_expert.tolist() == visits.tolist()
        router(x)
        assert router.tokens_per_expert.tolist() == (2 * visits).tolist()

    def test_evaluation_is_not_counted(self):
        router = self.router().eval()
        router(torch.randn(5, 4))
        assert router.tokens_per_expert.sum() == 0

    @pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
    def test_a_recomputed_forward_pass_counts_once(self, reentrant):
        router, calls = self.router(), []
        x = torch.randn(5, 4, requires_grad=True)

        def weights(x):
            calls.append(None)
            return router(x).weights

        checkpoint(weights, x, use_reentrant=reentrant).sum().backward()
        assert len(calls) == 2 and router.tokens_per_expert.sum() == 10

    @pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
    def test_a_compiled_router_counts_once_inside_of_a_checkpoint(self, reentrant):
        router, x = self.router(), torch.randn(5, 4, requires_grad=True)
        compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
        weights = checkpoint(lambda x: compiled(x).weights, x, use_reentrant=reentrant)
        weights.sum().backward()
        assert router.tokens_per_expert.sum() == 10

    def test_visits_are_counted_under_torch_func(self):
        router, x = self.router(), torch.randn(2, 5, 4)
        visits = router(x).experts.flatten().bincount(minlength=3)
        router.tokens_per_expert.zero_()

        def total(weight, x):
            return functional_call(router, {"weight": weight}, (x,)).weights.sum()

        vmap(grad(total), (None, 0))(router.weight.detach(), x)
        assert router.tokens_per_expert.tolist() == visits.tolist()

    def test_compiled_routers_count(self):
        router, x = self.router(), torch.randn(5, 4)
        compiled = torch.compile(router, fullgraph=True, backend="aot_eager")
        routing = compiled(x)
        visits = routing.experts.flatten().bincount(minlength=3)
        assert router.tokens_per_expert.tolist() == visits.tolist()
        torch.testing.assert_close(routing.scores, router(x).scores)

    def test_counts_are_not_saved_and_the_bias_is(self):
        assert set(self.router().state_dict()) == {"weight", "correction_bias"}
        assert set(Router(4, experts=3, top_k=2).state_dict()) == {"weight"}


def test_a_router_from_the_meta_device_begins_like_any_other():
    with torch.device("meta"):
        router = Router(4, experts=3, top_k=2, balance_rate=0.1, intercept=True)
    router.to_empty(device="cpu")
    for buffer in router.buffers():
        buffer.fill_(7)
    router.reset_parameters()
    assert not any(buffer.any() for buffer in router.buffers())
    assert router.weight.isfinite().all() and not router.intercept.any()


@pytest.mark.parametrize("affinity, start", [("linear", 0.0), ("euclidean", 16.0)])
def test_where_an_intercept_starts(affinity, start):
    router = Router(16, experts=2, affinity=affinity, intercept=True)
    assert router.intercept.tolist() == [start, start]
    assert Router(16, experts=2).intercept is None
    assert Router(16, experts=2, affinity="euclidean").intercept is not None


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_affinities_of_normed_tokens_start_near_one(affinity):
    router = Router(256, experts=64, affinity=affinity)
    x = torch.randn(100, 256)
    logits = router(x * 256**0.5 / x.norm(dim=-1, keepdim=True)).logits
    assert 0.5 < logits.std() < 3 and abs(logits.mean()) < 2


PARAMETER = torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(top_k=9), "top_k must be 1 to 8, the experts that a token may choose from"),
        (dict(top_k=0), "top_k must be 1 to 8, .*, got 0"),
        (dict(top_k=5, groups=4, top_groups=2), "top_k must be 1 to 4"),
        (dict(groups=3), r"groups must divide experts \(8\), got 3"),
        (dict(groups=4, top_groups=5), "top_groups must be 1 to 4, got 5"),
        (dict(groups=4, top_groups=0), "top_groups must be 1 to 4, got 0"),
        (dict(top_k=None, balance_rate=0.1), "top_k: balance_rate and top_groups choose among"),
        (dict(top_k=None, groups=4, top_groups=2), "with top_k None every token visits them all"),
        (dict(gate="tanh"), "gate must be one of .*, got 'tanh'"),
        (dict(affinity="cubic"), "affinity must be one of .*, got 'cubic'"),
        (dict(temperature=0.0), "temperature must be positive, got 0.0"),
        (dict(temperature=float("nan")), "temperature must be positive, got nan"),
        (dict(route_scale=-1.0), "route_scale must be positive, got -1.0"),
        (dict(balance_rate=-0.1), "balance_rate must be 0 or more, got -0.1"),
        (dict(dim=0), "dim must be positive, got 0"),
        (dict(experts=0), "experts must be positive, got 0"),
        (dict(groups=0), "groups must be positive, got 0"),
        (dict(route_scale=float("inf")), "route_scale must be positive, got inf"),
        (dict(temperature=1e-45), "temperature must be positive, got 1e-45"),
        (dict(temperature=10**400), "temperature must be positive, got a number of 1329 bits"),
        (dict(balance_rate=float("inf")), "balance_rate must be 0 or more, got inf"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        Router(**{"dim": 4, "experts": 8, "top_k": 2, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(dim=4.5), "dim must be a whole number, got 4.5"),
        (dict(experts=None), "experts must be a whole number, got None"),
        (dict(top_k=1.5), "top_k must be 1 to 8, .*, got 1.5"),
        (dict(top_k="2"), "top_k must be 1 to 8, .*, got the string '2'"),
        (dict(top_k=True), "top_k must be 1 to 8, .*, got True"),
        (dict(groups=2.0), "groups must be a whole number, got 2.0"),
        (dict(groups=4, top_groups=1.5), "top_groups must be 1 to 4, got 1.5"),
        (dict(route_scale=PARAMETER), "route_scale must be a number, got a Parameter of shape"),
        (dict(temperature=None), "temperature must be a number, got None"),
        (dict(balance_rate="0.1"), "balance_rate must be a number, got the string '0.1'"),
        (dict(balance_rate=PARAMETER), "balance_rate must be a number, got a Parameter"),
        (dict(normalize=None), "normalize must be True or False, got None"),
        (dict(intercept="yes"), "intercept must be True or False, got the string 'yes'"),
        (dict(gate=["sigmoid"]), "gate must be one of .*, got \\['sigmoid'\\]"),
        (dict(affinity=PARAMETER), "affinity must be one of .*, got a Parameter"),
    ],
    ids=str,
)
def test_wrong_types_are_refused(change, sentence):
    with pytest.raises(TypeError, match=sentence) as error:
        Router(**{"dim": 4, "experts": 8, "top_k": 2, **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 5), (), (4, 1)], ids=str)
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="x must have 4 channels, got shape"):
        Router(4, experts=2)(torch.zeros(shape))


def test_a_router_does_not_compute_in_the_default_dtype():
    router, x = Router(8, experts=5, top_k=2, balance_rate=0.1), torch.randn(2, 400, 8)
    expected = router(x)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            routing = router(x)
            losses = [loss(routing) for loss in (switch_loss, sequence_loss, z_loss)]
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(*pair) for pair in zip(routing, expected, strict=True))
        for loss, actual in zip((switch_loss, sequence_loss, z_loss), losses, strict=True):
            assert torch.equal(actual, loss(expected)) and actual.dtype == torch.float32
