"""The published sizes and training figures of Ramapuram et al. 2024, on the meta device."""

import pytest
import torch

from sigmoid_attention.nn import PRESETS, TRAINING_RECIPES, DecoderLM

# layers, dim, heads, head dim, feed-forward width; papers' table of section 6.2.
PUBLISHED = {
    "gala-85m": (12, 768, 12, 64, 2048),
    "gala-1b": (24, 2048, 32, 64, 5632),
    "gala-7b": (32, 4096, 32, 128, 11008),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    layers, dim, heads, head_dim, hidden = PUBLISHED[name]
    config = PRESETS[name]
    assert (config.layers, config.dim, config.num_heads, config.hidden_dim) == (
        layers,
        dim,
        heads,
        hidden,
    )
    assert (config.vocab_size, config.max_seq_len) == (32_768, 4096)
    with torch.device("meta"):
        model = DecoderLM(config)
    attention = model.blocks[0].attention
    assert (attention.head_dim, attention.num_kv_heads) == (head_dim, heads)
    matrices = 4 * dim * heads * head_dim + 3 * dim * hidden
    gains = 4 * dim + 2 * head_dim  # two norms on each of two branches, one on queries and keys
    expected = config.vocab_size * dim + layers * (matrices + gains) + dim
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("name, millions", [("gala-85m", 85), ("gala-1b", 1233), ("gala-7b", 6477)])
def test_parameters_outside_the_embedding_match_the_names(name, millions):
    with torch.device("meta"):
        model = DecoderLM(PRESETS[name])
    outside = sum(p.numel() for n, p in model.named_parameters() if "embedding" not in n)
    assert round(outside / 1e6) == millions


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_arms_have_equal_parameters(name):
    with torch.device("meta"):
        arms = [DecoderLM(PRESETS[name]), DecoderLM(PRESETS[name].as_softmax())]
    shapes = [{k: v.shape for k, v in arm.state_dict().items()} for arm in arms]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "name, steps, tokens_per_step, multiplier",
    [
        ("gala-85m", 400_000, 2**20, 1.0),
        ("gala-1b", 300_000, 2**20, 0.375),
        ("gala-7b", 250_000, 2**22, 0.1875),
    ],
)
def test_published_training(name, steps, tokens_per_step, multiplier):
    recipe = TRAINING_RECIPES[name]
    assert (recipe.steps, recipe.tokens_per_step) == (steps, tokens_per_step)
    assert recipe.mup_multiplier == multiplier == 768 / PRESETS[name].dim
    assert recipe.seq_len == PRESETS[name].max_seq_len
    assert (recipe.peak_lr, recipe.weight_decay, recipe.warmup_steps) == (0.01, 1e-4, 5000)
    assert (recipe.betas, recipe.eps, recipe.clip_norm) == ((0.9, 0.95), 1e-8, 1.0)
    assert recipe.min_lr_ratio == 0.1


@pytest.mark.parametrize("name", ["tiny", "small", "medium"])
def test_small_models_read_bytes(name):
    assert PRESETS[name].vocab_size == 257
    with torch.device("meta"):
        DecoderLM(PRESETS[name])
