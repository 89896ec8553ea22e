"""The study's own changes to a layer: their formulas, by loops in float64, and where they start."""

import math

import pytest
import torch

from sigmoid_attention import HeadValues, sigmoid_attention
from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.studies.recipe import parts
from sigmoid_attention.studies.recipe.candidates import CANDIDATES

B, H, N, D = 2, 3, 9, 4
SIZES = {"vocab_size": 257, "dim": 16, "layers": 2, "num_heads": 4, "max_seq_len": 32}
OFFSET = torch.tensor([-1.0, -2.0, 0.5])


def centred(query, key, i):
    return query @ key.mean(0) / math.sqrt(D)


def nearest(query, key, i):
    return query @ key[-2:].mean(0) / math.sqrt(D)


def second_moment(query, key, i):
    return ((query.square() * key.var(0, unbiased=False)).sum() / D - 1) / 2


def log_position(query, key, i):
    return torch.tensor(math.log((i + 1) / N))


@pytest.mark.parametrize(
    ("part", "term"),
    [
        (lambda bias: parts.WindowCentring(bias, H), nearest),
        (lambda bias: parts.SecondMoment(bias, H), second_moment),
        (lambda bias: parts.LogPosition(bias, H, N), log_position),
    ],
    ids=["window", "moment", "position"],
)
def test_a_part_is_its_formula(part, term, monkeypatch):
    monkeypatch.setattr(parts, "WINDOW", 2)
    query, key, value = torch.randn(3, B, H, N, D).unbind(0)
    policy = part(HeadValues(OFFSET))
    policy.factor.data = torch.tensor([1.0, 0.5, -2.0])
    expected = torch.zeros(B, H, N, 1, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(N):
                row = (query[b, h, i].double(), key[b, h, : i + 1].double(), i)
                expected[b, h, i] = OFFSET[h] - policy.factor[h].double() * term(*row)
    found = sigmoid_attention(query, key, value, bias=policy, is_causal=True)
    wanted = sigmoid_attention(query, key, value, bias=expected.float(), is_causal=True)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_a_vector_is_trained_from_zero():
    query, key, value = torch.randn(3, B, H, N, D).unbind(0)
    policy = parts.VectorCentring(HeadValues(OFFSET), H, D)
    out = sigmoid_attention(query, key, value, bias=policy, is_causal=True)
    plain = sigmoid_attention(query, key, value, bias=OFFSET, is_causal=True)
    assert torch.equal(out, plain)
    policy.vector.data = torch.randn(H * D)
    vector = policy.vector.view(H, 1, D)
    out = sigmoid_attention(query, key, value, bias=policy, is_causal=True)
    moved = sigmoid_attention(query, key - vector, value, bias=OFFSET, is_causal=True)
    torch.testing.assert_close(out, moved, atol=2e-5, rtol=1e-4)


def test_the_mean_of_batches_follows_the_keys_in_training_only():
    query, key, value = torch.randn(3, B, H, N, D).unbind(0)
    policy = parts.BatchCentring(HeadValues(OFFSET), H, D)
    for _ in range(600):
        sigmoid_attention(query, key, value, bias=policy, is_causal=True)
    mean = key.mean((0, 2))
    torch.testing.assert_close(policy.mean_HD, mean, atol=0.01, rtol=0)
    policy.eval()
    out = sigmoid_attention(query, 7 + key, value, bias=policy, is_causal=True)
    torch.testing.assert_close(policy.mean_HD, mean, atol=0.01, rtol=0)
    shifted = 7 + key - policy.mean_HD[:, None]
    moved = sigmoid_attention(query, shifted, value, bias=OFFSET, is_causal=True)
    torch.testing.assert_close(out, moved, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name, own in CANDIDATES.items() if own.parts])
def test_a_candidate_with_parts_trains_all_of_its_parameters(name):
    candidate = CANDIDATES[name]
    model = DecoderLM(candidate.config(**SIZES))
    candidate.change(model)
    tokens = torch.randint(0, 257, (2, 12))
    for _ in range(2):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name


def test_slopes_on_all_heads_set_the_bias_of_the_length_that_each_sees():
    layer = DecoderLM(CANDIDATES["sigmoid-centred"].config(**SIZES)).blocks[0].attention
    assert isinstance(layer, Attention)
    before = layer.bias.bias.value.detach().clone()
    parts.slopes_on_all_heads(layer)
    slopes = layer.position.slopes(4, "cpu")
    assert (slopes > 0).all()
    expected = -torch.log((1 - torch.exp(-slopes * 32)) / (1 - torch.exp(-slopes)))
    torch.testing.assert_close(layer.bias.bias.value.detach(), expected)
    assert not torch.equal(before, expected)
