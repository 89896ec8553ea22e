"""Scores of copying heads and shares of variance, on layers whose answer is known."""

import pytest
import torch

from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.studies.recipe import measure, mechanism
from sigmoid_attention.studies.recipe.candidates import CANDIDATES

SIZES = {"vocab_size": 257, "dim": 16, "layers": 2, "num_heads": 4, "max_seq_len": 32}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DecoderLM(CANDIDATES["sigmoid-centred"].config(**SIZES))


def test_repeated_sequences_have_the_symbols_of_the_text_in_no_order():
    text = torch.tensor([7, 7, 7, 9])
    tokens = mechanism.repeated(text, length=1001)
    assert tokens.shape == (mechanism.SEQUENCES, 1000)
    assert torch.equal(tokens[:, :500], tokens[:, 500:])
    assert 0.7 < (tokens == 7).float().mean() < 0.8
    assert torch.equal(tokens, mechanism.repeated(text, length=1001))
    assert len({tuple(row.tolist()) for row in tokens}) == len(tokens)


def test_a_head_that_copies_has_score_one(model, monkeypatch):
    layer = measure.attention_layers(model)[0]
    half, tokens = 16, 32

    def weights(x):
        chosen = torch.full((mechanism.SEQUENCES, 4, tokens, tokens), 1e-9)
        rows = torch.arange(half, tokens)
        chosen[:, 0, rows, rows - half + 1] = 0.3
        chosen[:, 1, rows, rows - half] = 0.3
        chosen[:, 2] = torch.ones(tokens, tokens).tril()
        return chosen

    monkeypatch.setattr(layer, "weights", weights)
    repeated = mechanism.repeated(torch.arange(200), tokens)
    first, other = mechanism.prefix_matching(model, repeated)
    assert first[0] > 0.999
    assert first[1] < 1e-6
    assert first[2] == pytest.approx(1.4 / tokens, rel=0.1)
    assert other.shape == (4,) and (other < 0.2).all()


def test_a_model_that_copies_gains_the_bits_of_a_random_symbol(model, monkeypatch):
    repeated = mechanism.repeated(torch.arange(16), 32)

    def copies(tokens):
        """Each token costs 4 bits, and in the second half none."""
        logits = torch.full((*tokens.shape, 257), -1e4)
        logits[:, :, :16] = 0.0
        for i in range(15, 31):
            logits[:, i].scatter_(1, repeated[:, i + 1 :][:, :1], 50.0)
        return logits

    monkeypatch.setattr(model, "forward", copies)
    assert mechanism.copying_gain(model, repeated) == pytest.approx(4 * 15 / 16, abs=1e-3)


def test_the_share_is_one_where_rows_differ_and_zero_where_keys_do():
    visible = torch.ones(6, 6, dtype=torch.bool).tril()
    rows = torch.randn(2, 3, 6, 1, dtype=torch.float64).expand(2, 3, 6, 6)
    torch.testing.assert_close(mechanism._share(rows, visible), torch.ones(3).double())
    columns = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    columns = columns - mechanism._means(columns, visible)
    assert (mechanism._share(columns, visible) < 1e-12).all()
    both = rows + columns
    share = mechanism._share(both, visible)
    pairs = both[:, :, visible]
    total = pairs.var((0, 2), unbiased=False)
    within = columns[:, :, visible].square().mean((0, 2))
    torch.testing.assert_close(share, 1 - within / total)


def test_the_learned_strength_removes_its_part_of_the_common_variance(model):
    tokens = torch.randint(0, 257, (3, 20))
    for layer in measure.attention_layers(model):
        layer.bias.strength.data = torch.tensor([1.0, 0.0, 0.5, 1.0])
    for before, after in mechanism.common_shares(model, tokens):
        assert (before > 0.01).all()
        assert (after[[0, 3]] < 1e-9).all()
        torch.testing.assert_close(after[1], before[1])
        assert 0 < after[2] < before[2]


def test_cumulants_of_normal_logits_end_with_the_variance(model, monkeypatch):
    torch.manual_seed(1)
    scale = torch.rand(2, 1, 600, 1, dtype=torch.float64) + 0.5
    shift = torch.randn(2, 1, 600, 1, dtype=torch.float64)
    logits = shift + scale * torch.randn(2, 1, 600, 600, dtype=torch.float64)
    visible = torch.ones(600, 600, dtype=torch.bool)
    monkeypatch.setattr(mechanism, "logits_of_layers", lambda *_: [(None, logits, visible)])
    ((nothing, mean, variance, third),) = mechanism.normaliser_errors(model, None)
    # log E e^x of a normal x is its mean and half its variance.
    assert nothing > 0.9 and 0.2 < mean < 0.5
    assert variance < 0.25 * mean and third < 0.3 * mean


def test_the_errors_are_those_of_the_models_own_logits(model):
    tokens = torch.randint(0, 257, (3, 20))
    for errors in mechanism.normaliser_errors(model, tokens):
        assert len(errors) == 4 and all(error.shape == (4,) for error in errors)
        # Logits of an untrained model are small: each cumulant leaves less.
        assert (errors[1] < errors[0]).all() and (errors[2] < errors[1]).all()


def test_nothing_is_left_on_the_model(model):
    model.train()
    tokens = torch.randint(0, 257, (2, 40))
    mechanism.prefix_matching(model, mechanism.repeated(tokens.flatten(), 32))
    mechanism.common_shares(model, tokens)
    assert model.training
    assert not any(layer._forward_pre_hooks for layer in measure.attention_layers(model))


def test_a_window_on_rotating_heads_leaves_the_heads_with_slopes_alone(model):
    layer = measure.attention_layers(model)[0]
    x = torch.randn(1, 20, 16)
    slopes = layer.position.slopes(4, "cpu")
    rotating = slopes == 0
    assert rotating.tolist() == [False, True, False, True]
    whole = layer.weights(x)
    with measure.rotating_at_most_seen(model, 5):
        found = layer.weights(x)
    torch.testing.assert_close(found[:, ~rotating], whole[:, ~rotating])
    hidden = torch.ones(20, 20, dtype=torch.bool).tril(-5)
    assert (found[:, rotating][..., hidden] == 0).all()
    with measure.at_most_seen(model, 5):
        near = layer.weights(x)
    torch.testing.assert_close(found[:, rotating], near[:, rotating])
    assert torch.equal(layer.weights(x), whole)
