"""Text batches: a pure function of (seed, step), each row a piece of the stream."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.training.data.batches import TextBatches, token_stream
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import ByteTokenizer


@given(
    length=st.integers(2, 60),
    seq_len=st.integers(1, 59),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 9),
    step=st.integers(0, 10_000),
)
def test_targets_follow_their_inputs(length, seq_len, batch_size, seed, step):
    tokens = torch.arange(100, 100 + length, dtype=torch.int32)
    if length < seq_len + 1:
        with pytest.raises(ValueError, match="shorter than one sequence"):
            TextBatches(tokens, seq_len, batch_size, seed)
        return
    inputs, targets = TextBatches(tokens, seq_len, batch_size, seed).batch(step)
    assert inputs.shape == targets.shape == (batch_size, seq_len)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs + 1, targets), "the stream counts up, so the next token is one more"
    assert inputs.min() >= 100 and targets.max() < 100 + length
    again = TextBatches(tokens, seq_len, batch_size, seed).batch(step)
    assert torch.equal(inputs, again[0])


def test_every_place_is_reached():
    batches = TextBatches(torch.arange(10), seq_len=3, batch_size=4, seed=0)
    starts = {row[0].item() for step in range(60) for row in batches.batch(step)[0]}
    assert starts == set(range(7))


def test_seeds_and_steps_give_different_batches():
    tokens = torch.arange(1000)
    drawn = {
        tuple(TextBatches(tokens, 2, 3, seed).batch(step)[0][:, 0].tolist())
        for seed in range(5)
        for step in range(20)
    }
    assert len(drawn) == 100


def test_the_stream_ends_every_document():
    documents = [Document("a", b"ab"), Document("b", b""), Document("c", b"c")]
    assert token_stream(ByteTokenizer(), documents).tolist() == [97, 98, 256, 256, 99, 256]


def test_the_description_sees_the_text_and_the_sizes():
    tokens = torch.arange(50, dtype=torch.int32)
    first = TextBatches(tokens, 4, 2, 0).describe()
    assert TextBatches(tokens.clone(), 4, 2, 0).describe() == first
    changed = tokens.clone()
    changed[7] = 0
    others = [
        TextBatches(changed, 4, 2, 0),
        TextBatches(tokens, 5, 2, 0),
        TextBatches(tokens, 4, 2, 1),
    ]
    assert all(other.describe() != first for other in others)


@pytest.mark.parametrize("name", ["seq_len", "batch_size"])
def test_sizes_must_be_positive(name):
    sizes = {"seq_len": 3, "batch_size": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        TextBatches(torch.arange(9), **sizes, seed=0)
