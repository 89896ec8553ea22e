"""Our modules against those of transformers: outputs, installed kernels and bias updates."""

import importlib
import sys

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Ernie4_5_MoeConfig,
    Ernie4_5_MoeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MiniMaxM2Config,
    MiniMaxM2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from sigmoid_attention.integrations.moe import to_layout
from sigmoid_attention.integrations.moe.transformers import (
    NAME,
    balance,
    from_deepseek,
    moe_config,
    register_experts,
)

SIZES = dict(
    vocab_size=17, hidden_size=12, intermediate_size=10, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, num_experts_per_tok=2,
)  # fmt: skip


def deepseek_config(**changes):
    latent = dict(
        q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4
    )
    experts = dict(
        n_routed_experts=6, moe_intermediate_size=7, n_shared_experts=2, first_k_dense_replace=1,
        n_group=3, topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5,
    )  # fmt: skip
    return DeepseekV3Config(**{**SIZES, **latent, **experts, **changes})


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=5))


def minimax():
    """Mixtral's block with a sigmoid and a correction bias, which the block holds itself."""
    return MiniMaxM2ForCausalLM(MiniMaxM2Config(**SIZES, num_local_experts=5, head_dim=6))


def gpt_oss():
    """Biases, transposed and interleaved weights, and a gate of its own."""
    return GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=5, head_dim=6))


def ernie():
    """A bias that is a parameter, and a row."""
    return Ernie4_5_MoeForCausalLM(
        Ernie4_5_MoeConfig(
            **SIZES,
            moe_num_experts=5, moe_intermediate_size=7, moe_layer_start_index=0,
        )
    )  # fmt: skip


def deepseek():
    return DeepseekV3ForCausalLM(deepseek_config())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(module):
    """Weights and correction biases of one size, so that no term of an answer is negligible.

    Without transformers' default kernel, which refuses channels of such numbers on a processor.
    """
    if hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("eager")
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if "bias" not in name or "correction" in name or "experts" in name:
                tensor.normal_(std=0.3)
    return module


@pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_our_layer_answers_as_deepseeks_module(normalised, dtype):
    theirs = randomised(DeepseekV3MoE(deepseek_config(norm_topk_prob=normalised))).to(dtype)
    # transformers keeps it so when it loads a checkpoint; the router is float32 in both.
    theirs.gate.e_score_correction_bias = theirs.gate.e_score_correction_bias.float()
    ours = from_deepseek(theirs)
    x = torch.randn(3, 5, 12, dtype=dtype)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y_ours, y_theirs = ours(x_ours), theirs(x_theirs)
    # Their router rounds float64 tokens to float32; ours does not.
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(y_ours, y_theirs, rtol=tolerance, atol=tolerance)
    direction = torch.randn_like(y_ours)
    y_ours.backward(direction)
    y_theirs.backward(direction)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, rtol=tolerance, atol=4 * tolerance)


def test_and_back():
    theirs = randomised(DeepseekV3MoE(deepseek_config()))
    ours = from_deepseek(theirs)
    other = DeepseekV3MoE(deepseek_config())
    other.load_state_dict(to_layout(ours.state_dict(), "deepseek"))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_configuration_of_another_kind_is_refused():
    assert moe_config(deepseek_config()).top_groups == 2
    with pytest.raises(ValueError, match="config must be of a deepseek_v3 model, got 'mixtral'"):
        moe_config(MixtralConfig())
    with pytest.raises(ValueError, match="experts are SwiGLU here, got hidden_act 'gelu'"):
        moe_config(deepseek_config(hidden_act="gelu"))


@pytest.mark.parametrize("build", [deepseek, mixtral, gpt_oss], ids=lambda build: build.__name__)
def test_our_kernel_answers_as_theirs_and_has_their_gradients(build):
    register_experts()
    model = randomised(build())
    tokens = torch.randint(3, 17, (2, 6))

    def run(implementation):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        logits = model(tokens).logits
        logits.square().sum().backward()
        return logits, {name: p.grad for name, p in model.named_parameters()}

    expected, theirs = run("eager")
    calls = []
    experts = [module for module in model.modules() if hasattr(module, "has_gate")]
    for module in experts:
        module.register_forward_hook(lambda *_: calls.append(None))
    logits, ours = run(NAME)
    assert len(calls) == len(experts) > 0 and model.config._experts_implementation == NAME
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_visits_to_experts_of_another_process_add_nothing():
    register_experts()
    model = randomised(mixtral())
    model.set_experts_implementation(NAME)
    experts = model.model.layers[0].mlp.experts
    x, weights = torch.randn(4, 12), torch.rand(4, 2)
    here = experts(x, torch.tensor([[0, 4]] * 4), weights * torch.tensor([1.0, 0.0]))
    experts._is_expert_parallel = True
    torch.testing.assert_close(experts(x, torch.tensor([[0, 5]] * 4), weights), here)


def biases(model):
    return [b for name, b in model.state_dict().items() if name.endswith("e_score_correction_bias")]


@pytest.mark.parametrize(
    "build, layers", [(deepseek, 1), (minimax, 2), (ernie, 2)], ids=["deepseek", "minimax", "ernie"]
)
def test_every_bias_moves_against_the_load_and_sums_to_nothing(build, layers):
    model = randomised(build()).train()
    for bias in biases(model):
        bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    balancing = balance(model, optimizer, rate=0.01)
    tokens = torch.randint(3, 17, (3, 7))
    model(tokens)
    counts = [router.tokens_per_expert.clone() for router in balancing.routers]
    assert len(counts) == layers and all(count.sum() == 3 * 7 * 2 for count in counts)
    optimizer.step()
    for bias, count in zip(biases(model), counts, strict=True):
        step = 0.01 * (count.double().mean() - count).sign()
        torch.testing.assert_close(bias.view(-1).double(), step - step.mean(), atol=1e-7, rtol=1e-5)
    moved = [bias.clone() for bias in biases(model)]
    model.eval()(tokens)
    assert not any(router.tokens_per_expert.any() for router in balancing.routers)
    balancing.remove()
    model.train()(tokens)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(moved, biases(model), strict=True))


def test_gradient_checkpointing_counts_once():
    model = randomised(deepseek()).train()
    # Its name until version 6 of transformers.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    balancing = balance(model, torch.optim.SGD(model.parameters(), lr=0.0))
    model(torch.randint(3, 17, (3, 7))).logits.sum().backward()
    assert balancing.routers[0].tokens_per_expert.sum() == 3 * 7 * 2


def test_balancing_evens_the_load_of_a_model_that_is_not_trained():
    model = randomised(deepseek()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    biases(model)[0].copy_(torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0, 0.0]))
    balancing = balance(model, optimizer, rate=0.02)
    tokens, largest = torch.randint(3, 17, (8, 30)), []
    for _ in range(60):
        model(tokens)
        counts = balancing.routers[0].tokens_per_expert.double()
        largest.append((counts.max() / counts.mean()).item())
        optimizer.step()
    assert largest[0] > 2.5 and min(largest[-5:]) < 1.5


def test_models_without_a_bias_and_biases_of_few_bits_are_refused():
    model = mixtral()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with pytest.raises(ValueError, match="MixtralForCausalLM has no e_score_correction_bias"):
        balance(model, optimizer)
    with pytest.raises(ValueError, match=r"is in torch.bfloat16, which loses steps of 0.001"):
        balance(deepseek().bfloat16(), optimizer)
    with pytest.raises(ValueError, match="rate must be positive, got 0"):
        balance(model, optimizer, rate=0.0)


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, balance.__module__)
    with pytest.raises(ImportError, match=r"pip install '\.\[transformers\]'"):
        importlib.import_module(balance.__module__)


CASTS = {
    "bfloat16()": lambda model: model.bfloat16(),
    "half()": lambda model: model.half(),
    "to(dtype=)": lambda model: model.to(dtype=torch.bfloat16),
}


@pytest.mark.parametrize("build", [deepseek, minimax], ids=lambda build: build.__name__)
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_balanced_bias_keeps_its_digits_in_a_cast(build, cast):
    model = build()
    balancing = balance(model, torch.optim.SGD(model.parameters(), lr=0.0))
    for router in balancing.routers:
        router.correction_bias.copy_(6.9 + 0.06 * torch.randn(router.correction_bias.shape))
    before = [router.correction_bias.clone() for router in balancing.routers]
    model = cast(model)
    for router, expected in zip(balancing.routers, before, strict=True):
        assert router.correction_bias.dtype == torch.float32
        assert torch.equal(router.correction_bias, expected)


def test_our_layer_of_a_module_in_bfloat16_has_its_bias_in_fp32():
    module = deepseek().model.layers[1].mlp
    bias = module.gate.e_score_correction_bias.normal_(6.9, 0.06).clone()
    module.bfloat16()
    module.gate.e_score_correction_bias = bias
    layer = from_deepseek(module)
    assert layer.router.weight.dtype == torch.bfloat16
    assert torch.equal(layer.router.correction_bias, bias)
