"""The decoder: initialisation, loss, parameter names, hooks, compilation and bad input."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sigmoid_attention.nn import PRESETS, DecoderLM, ModelConfig, MoEConfig

TINY = PRESETS["tiny"]
LOSS_TOKENS = torch.ones(2, 3, dtype=torch.long)
ARMS = {"sigmoid": TINY, "softmax": TINY.as_softmax()}


@pytest.fixture(params=ARMS)
def config(request):
    return ARMS[request.param]


def changed(config, **changes):
    return ModelConfig.from_dict({**config.to_dict(), **changes})


@pytest.mark.parametrize(
    "changes, above",
    [
        (dict(norm_placement="pre"), 1.1),
        (dict(norm_placement="hybrid"), 0.5),
        (dict(norm_placement="hybrid", tie_embeddings=False), 0.5),
        (dict(norm_placement="post"), 0.0),
        (dict(norm_placement="pre", layer_scale=1e-4), 0.0),
        (dict(norm_placement="hybrid", layer_scale=1e-4), 0.0),
    ],
    ids=str,
)
def test_first_loss_is_about_the_log_of_the_vocabulary(config, changes, above):
    config = changed(config, dim=64, **changes)
    tokens = torch.randint(257, (8, 33))
    loss = DecoderLM(config).loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(257) + above, abs=0.3)


def test_linear_weights_start_normal_with_variance_one_over_fan_in():
    model = DecoderLM(changed(TINY, dim=128, ffn_dim=384))
    down, query = model.blocks[0].feed_forward.down.weight, model.blocks[0].attention.query.weight
    assert down.std().item() == pytest.approx(384**-0.5, rel=0.02)
    assert query.std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert model.embedding.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    # A normal's fourth moment is three times its squared second; a uniform's is 1.8 times.
    kurtosis = (query.pow(4).mean() / query.pow(2).mean() ** 2).item()
    assert kurtosis == pytest.approx(3, abs=0.2)
    assert not any(name.endswith("bias") for name in model.state_dict())


def test_loss_is_the_cross_entropy_of_the_scored_targets(config):
    model = DecoderLM(config)
    tokens, targets = torch.randint(257, (2, 2, 7)).unbind(0)
    targets[0, :5] = -100
    log_p = F.log_softmax(model(tokens), -1)
    scored = [
        -log_p[b, i, targets[b, i]] for b in range(2) for i in range(7) if targets[b, i] != -100
    ]
    torch.testing.assert_close(model.loss(tokens, targets), torch.stack(scored).mean())


def test_arms_differ_in_two_numbers_a_head_that_a_softmax_does_not_see():
    sigmoid, softmax = (DecoderLM(config).state_dict() for config in ARMS.values())
    own = {name for name in sigmoid if name.endswith(("bias.strength", "bias.bias.value"))}
    assert [name for name in sigmoid if name not in own] == list(softmax)
    assert {sigmoid[name].shape for name in own} == {(2,)} and len(own) == 4
    DecoderLM(ARMS["softmax"]).load_state_dict(
        {name: value for name, value in sigmoid.items() if name not in own}
    )


def test_equal_seeds_give_equal_arms():
    models = []
    for config in ARMS.values():
        torch.manual_seed(3)
        models.append(DecoderLM(config).state_dict())
    sigmoid, softmax = models
    assert all(torch.equal(sigmoid[key], softmax[key]) for key in softmax)


def test_every_parameter_is_trained(config):
    config = changed(config, learn_bias=True, layer_scale=0.1, position="learned")
    model = DecoderLM(config)
    tokens = torch.randint(257, (4, 33))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


def test_a_hook_on_a_layer_can_ask_for_its_statistics(config):
    model, seen = DecoderLM(config), {}
    names = {name for name, _ in model.named_modules()}
    for i in range(config.layers):
        assert {f"blocks.{i}", f"blocks.{i}.attention", f"blocks.{i}.feed_forward"} <= names
        layer = model.get_submodule(f"blocks.{i}.attention")
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "return_statistics": True}),
            with_kwargs=True,
        )

        def keep(module, args, answer, i=i):
            out, seen[i] = answer
            return out

        layer.register_forward_hook(keep)
    tokens = torch.randint(257, (2, 5))
    watched = model(tokens)
    unwatched = DecoderLM(config)
    unwatched.load_state_dict(model.state_dict())
    torch.testing.assert_close(watched, unwatched(tokens))
    assert [aux.mass.shape for aux in seen.values()] == [(2, config.num_heads, 5)] * config.layers


def test_overfitting_one_batch(config):
    model = DecoderLM(config)
    tokens = torch.randint(257, (2, 17))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_bf16_parameters_give_bf16_logits_near_those_of_fp32(config):
    model, tokens = DecoderLM(config), torch.randint(257, (2, 9))
    exact = model(tokens)
    logits = model.bfloat16()(tokens)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, atol=0.15, rtol=0.05)


def test_a_meta_model_can_be_filled(config):
    model, tokens = DecoderLM(config), torch.randint(257, (1, 5))
    with torch.device("meta"):
        empty = DecoderLM(config)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    torch.testing.assert_close(filled(tokens), model(tokens), rtol=0, atol=0)


def test_cape_draws_in_training_only():
    model, tokens = DecoderLM(changed(TINY, position="cape")), torch.randint(257, (1, 5))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


# Torch's own lowering passes call an API that torch itself has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("position, backend", [("rope", "inductor"), ("alibi", "aot_eager")])
def test_it_compiles_without_a_graph_break(config, position, backend):
    model = DecoderLM(changed(config, position=position, layers=1))
    tokens = torch.randint(257, (2, 9))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(tokens), model(tokens), atol=1e-5, rtol=0)


def test_bad_input_is_named(config):
    model = DecoderLM(changed(config, position="learned"))
    with pytest.raises(ValueError, match=r"tokens must be integers of shape .* torch.float32"):
        model(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"tokens must be integers of shape .* \(3,\)"):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="learned position table ends at 32 tokens, got 33"):
        model(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="cache must hold 2 layers, got 1"):
        model(torch.zeros(1, 3, dtype=torch.long), cache=model.new_cache(1, 8)[:1])
    with pytest.raises(ValueError, match="attn_mask must be boolean of shape"):
        model(torch.zeros(1, 3, dtype=torch.long), attn_mask=torch.ones(1, 3))
    cache = model.new_cache(1, 4)
    model(torch.zeros(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="its capacity is 4"):
        model(torch.zeros(1, 2, dtype=torch.long), cache=cache)
    assert [layer.length for layer in cache] == [3, 3]
    for tokens in ([[0, 257]], [[-1, 0]]):
        with pytest.raises(ValueError, match=r"^tokens must lie in 0 to 256, got "):
            model(torch.tensor(tokens), cache=model.new_cache(1, 4))
    with pytest.raises(TypeError, match=r"^tokens must be a tensor of torch, got \[\[0\]\]"):
        model([[0]])


@pytest.mark.parametrize(
    "tokens, targets, error, match",
    [
        (
            LOSS_TOKENS,
            np.ones((2, 3), dtype=np.int64),
            TypeError,
            "targets must be a tensor of torch",
        ),
        (LOSS_TOKENS, [[1, 2, 3]] * 2, TypeError, "targets must be a tensor of torch"),
        (LOSS_TOKENS.numpy(), LOSS_TOKENS, TypeError, "tokens must be a tensor of torch"),
        (
            LOSS_TOKENS,
            LOSS_TOKENS[:1],
            ValueError,
            r"targets must be integers of the tokens' shape \(2, 3\)",
        ),
        (
            LOSS_TOKENS,
            LOSS_TOKENS.flatten(),
            ValueError,
            r"shape \(2, 3\), got torch.int64 of shape \(6,\)",
        ),
        (
            LOSS_TOKENS,
            LOSS_TOKENS.float(),
            ValueError,
            "targets must be integers .*, got torch.float32",
        ),
        (
            LOSS_TOKENS,
            LOSS_TOKENS + 256,
            ValueError,
            "targets must lie in 0 to 256, or be -100 .* 257 to 257",
        ),
        (
            LOSS_TOKENS,
            LOSS_TOKENS - 2,
            ValueError,
            "targets must lie in 0 to 256, .*, got -1 to -1",
        ),
    ],
    ids=["numpy", "list", "tokens", "rows", "flat", "float", "above", "below"],
)
def test_bad_targets_are_refused_before_a_router_counts(tokens, targets, error, match):
    moe = MoEConfig(experts=3, hidden=4, top_k=1, balance_rate=0.1)
    model = DecoderLM(dataclasses.replace(PRESETS["tiny"], moe=moe))
    before = copy.deepcopy(dict(model.named_buffers()))
    with pytest.raises(error, match=match):
        model.loss(tokens, targets)
    assert before and all(buffer.equal(before[n]) for n, buffer in model.named_buffers())


def test_targets_may_be_int32_and_all_be_left_out():
    model = DecoderLM(PRESETS["tiny"])
    assert model.loss(LOSS_TOKENS, LOSS_TOKENS.int()).equal(model.loss(LOSS_TOKENS, LOSS_TOKENS))
    assert model.loss(LOSS_TOKENS, torch.full((2, 3), -100)).isnan()
