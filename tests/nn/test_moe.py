"""The mixture-of-experts layer and its decoder: against loops, in training, resumed, generating."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sigmoid_attention.nn import (
    DecoderLM,
    Experts,
    ModelConfig,
    MoE,
    MoEConfig,
    Router,
    generate,
    record_routing,
    sequence_loss,
    switch_loss,
    z_loss,
)
from sigmoid_attention.training.tasks import Copying
from sigmoid_attention.training.trainer import TrainConfig, train
from tests.support.moe_oracle import mixture

DEEPSEEK = MoEConfig(
    experts=6, hidden=5, top_k=2, shared_experts=1, dense_layers=1, normalize=True,
    groups=3, top_groups=2, route_scale=2.5, balance_rate=0.01, sequence_loss=1e-3,
)  # fmt: skip
MIXTRAL = MoEConfig(
    experts=4, hidden=7, top_k=2, gate="softmax", normalize=True, switch_loss=0.01, z_loss=1e-3
)
DENSE = MoEConfig(experts=3, hidden=5, affinity="partially_quadratic", intercept=True)
CONFIGS = {"deepseek": DEEPSEEK, "mixtral": MIXTRAL, "dense": DENSE}
each_config = pytest.mark.parametrize("moe", CONFIGS.values(), ids=CONFIGS)


def model_config(moe, **changes):
    sizes = dict(vocab_size=9, dim=8, layers=2, num_heads=2, ffn_dim=12, max_seq_len=8)
    return ModelConfig.recipe("recommended", **{**sizes, "moe": moe, **changes})


@each_config
@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_the_layer_is_its_formula_with_its_gradients(moe, kind):
    layer = moe.build(dim=6, kind=kind).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    routing = layer.router(x)
    y = layer(x)
    expected = mixture(
        layer.experts,
        x.flatten(0, 1),
        routing.experts.flatten(0, 1),
        routing.weights.flatten(0, 1),
    ).view_as(x)
    if layer.shared is not None:
        expected = expected + layer.shared(x)
    torch.testing.assert_close(y, expected)
    direction, leaves = torch.randn_like(y), [x, *layer.parameters()]
    gradients = torch.autograd.grad(y, leaves, direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, direction))


@each_config
@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3, 4, 6), (0, 6)], ids=str)
def test_any_leading_dimensions(moe, shape):
    layer = moe.build(dim=6)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.view(-1, 6), layer(x.view(1, -1, 6)).view(-1, 6))


@each_config
def test_a_token_is_not_moved_by_its_neighbours(moe):
    layer, x = moe.build(dim=6).eval(), torch.randn(9, 6)
    torch.testing.assert_close(layer(x)[4], layer(x[4:5])[0])


def test_the_widths_of_shared_experts_add_up():
    layer = dataclasses.replace(DEEPSEEK, shared_experts=3).build(dim=4, kind="gelu")
    assert layer.shared.up.weight.shape == (15, 4)
    assert MIXTRAL.build(dim=4).shared is None


def test_router_and_experts_must_fit():
    with pytest.raises(ValueError, match="the router's experts is 3, that of the experts 4"):
        MoE(Router(2, experts=3), Experts(4, dim=2, hidden=5))
    with pytest.raises(ValueError, match="the router's dim is 2, that of the experts 3"):
        MoE(Router(2, experts=4), Experts(4, dim=3, hidden=5))


def test_compiled_it_answers_and_counts_the_same():
    layer, x = DEEPSEEK.build(dim=6), torch.randn(2, 5, 6)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    y.square().sum().backward()
    compiled = [parameter.grad.clone() for parameter in layer.parameters()]
    assert layer.router.tokens_per_expert.sum() == 2 * 2 * 5
    layer.zero_grad()
    expected = layer(x)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(compiled, [parameter.grad for parameter in layer.parameters()])


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(top_k=7), "top_k must be 1 to 4, the experts that a token may choose from"),
        (dict(groups=4), r"groups must divide experts \(6\), got 4"),
        (dict(hidden=0), "hidden must be positive, got 0"),
        (dict(shared_experts=-1), "shared_experts must be 0 or more, got -1"),
        (dict(dense_layers=-2), "dense_layers must be 0 or more, got -2"),
        (dict(switch_loss=float("nan")), "switch_loss must be 0 or more, got nan"),
        (dict(sequence_loss=float("inf")), "sequence_loss must be 0 or more, got inf"),
        (dict(normalize=3), "normalize must be True or False, got 3"),
    ],
    ids=str,
)
def test_wrong_values_of_a_configuration_are_refused(change, sentence):
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(DEEPSEEK, **change)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(dense_layers=1.5), "dense_layers must be a whole number, got 1.5"),
        (dict(shared_experts=None), "shared_experts must be a whole number, got None"),
        (dict(hidden="8"), "hidden must be a whole number, got the string '8'"),
        (dict(z_loss=torch.nn.Parameter(torch.ones(2))), "z_loss must be a number, got a Param"),
        (dict(switch_loss="1"), "switch_loss must be a number, got the string '1'"),
        (dict(top_k=1.5), "top_k must be 1 to 4, .*, got 1.5"),
    ],
    ids=str,
)
def test_wrong_types_of_a_configuration_are_refused(change, sentence):
    state = torch.get_rng_state()
    with pytest.raises(TypeError, match=sentence):
        dataclasses.replace(DEEPSEEK, **change)
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_of_numpy_are_kept_as_pythons():
    options = {
        field: np.asarray(value)[()]
        for field, value in dataclasses.asdict(DEEPSEEK).items()
        if isinstance(value, bool | int | float)
    }
    config = dataclasses.replace(DEEPSEEK, **options)
    assert config == DEEPSEEK
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(DEEPSEEK)


def test_the_penalty_weighs_the_losses_of_all_layers():
    moe = MoEConfig(4, 5, top_k=2, switch_loss=0.5, sequence_loss=0.25, z_loss=2.0)
    layers = torch.nn.ModuleList(moe.build(dim=3) for _ in range(2))
    with record_routing(layers) as routings:
        for layer in layers:
            layer(torch.randn(2, 6, 3))
    expected = sum(
        0.5 * switch_loss(r) + 0.25 * sequence_loss(r) + 2.0 * z_loss(r) for r in routings
    )
    torch.testing.assert_close(moe.penalty(routings), expected)
    assert DENSE.penalty(routings) == 0


class TestDecoder:
    """`ModelConfig.moe`: mixtures of experts as the feed-forward of a decoder."""

    @each_config
    def test_round_trip_through_json(self, moe):
        config = model_config(moe)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_a_configuration_without_experts_writes_no_moe_field(self):
        assert "moe" not in model_config(None).to_dict()

    def test_from_dict_names_the_field_that_is_wrong(self):
        values = model_config(DEEPSEEK).to_dict()
        with pytest.raises(ValueError, match="model configuration, moe: unknown field 'depth'"):
            ModelConfig.from_dict({**values, "moe": {**values["moe"], "depth": 3}})
        with pytest.raises(ValueError, match="model configuration, moe: field 'hidden' is missing"):
            ModelConfig.from_dict({**values, "moe": {"experts": 3}})

    def test_the_first_layers_stay_plain(self):
        blocks = DecoderLM(model_config(DEEPSEEK)).blocks
        assert [isinstance(block.feed_forward, MoE) for block in blocks] == [False, True]

    @each_config
    def test_generation_with_a_cache_is_that_without(self, moe):
        model = DecoderLM(model_config(moe)).eval()
        tokens = generate(model, torch.tensor([[1, 2], [3, 4]]), max_new_tokens=4)
        for length in range(2, 6):
            assert torch.equal(model(tokens[:, :length])[:, -1].argmax(-1), tokens[:, length])

    def test_balance_losses_belong_to_training(self):
        model = DecoderLM(model_config(MIXTRAL))
        tokens = torch.randint(9, (2, 7))
        with record_routing(model) as routings:
            trained = model.loss(tokens, tokens)
        penalty = MIXTRAL.penalty(routings[:2])
        assert len(routings) == 2 and penalty > 0
        torch.testing.assert_close(trained - model.eval().loss(tokens, tokens), penalty)

    @each_config
    def test_training_learns_and_resumes_with_the_same_bits(self, moe, tmp_path):
        batches = Copying(8, 8, vocab_size=9, seed=0)

        def model():
            torch.manual_seed(1)
            return DecoderLM(model_config(moe))

        config = TrainConfig(steps=20, lr=1e-2, warmup_steps=2, checkpoint_every=5)
        whole = model()
        losses = train(whole, batches, config, progress=False).losses
        assert sum(losses[-5:]) < sum(losses[:5])

        class Killed(Exception):
            pass

        def kill(done, _loss):
            if done == 7:
                raise Killed

        with pytest.raises(Killed):
            train(model(), batches, config, out=tmp_path, progress=False, on_step=kill)
        resumed = model()
        result = train(resumed, batches, config, out=tmp_path, resume=True, progress=False)
        assert result.resumed_from == 5 and result.losses == losses
        for name, tensor in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name

    def test_the_trainer_balances(self):
        model = DecoderLM(model_config(DEEPSEEK))
        batches = Copying(8, 8, vocab_size=9, seed=0)
        train(model, batches, TrainConfig(steps=3), progress=False)
        router = model.blocks[1].feed_forward.router
        assert router.correction_bias.abs().max() > 0
        assert router.tokens_per_expert.sum() == 0
