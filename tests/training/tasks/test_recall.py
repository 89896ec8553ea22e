"""Recall: labels against a dictionary built by reading the sequence from left to right."""

import pytest
import torch

from sigmoid_attention.training.tasks import MultiQueryRecall


@pytest.mark.parametrize(
    ("seq_len", "pairs", "vocab_size"),
    [(3, 1, 3), (15, 4, 9), (40, 7, 33), (64, 16, 130)],
    ids="n{0}".format,
)
def test_labels_are_what_a_reader_would_answer(seq_len, pairs, vocab_size):
    task = MultiQueryRecall(seq_len, 5, pairs, vocab_size, seed=1)
    for step in range(3):
        inputs, targets = task.batch(step)
        assert inputs.shape == targets.shape == (5, seq_len)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.min() >= 0 and inputs.max() < vocab_size
        for row, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
            told = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
            assert len(told) == pairs, "the keys of a sequence differ"
            queries = [(row[i], label) for i, label in enumerate(labels) if label != -100]
            assert dict(queries) == told and len(queries) == pairs
            for i, label in enumerate(labels[:-1]):
                if label != -100:
                    assert row[i + 1] == label, "what was answered is then read"
            filler = row[2 * pairs : seq_len + 1 - 2 * pairs]
            assert set(filler) <= {0}


def test_keys_and_values_are_different_tokens():
    task = MultiQueryRecall(23, 50, pairs=6, vocab_size=20, seed=0)
    inputs, targets = task.batch(0)
    keys, values = inputs[:, :12:2], inputs[:, 1:12:2]
    assert set(keys.unique().tolist()) == set(range(1, 1 + task.keys))
    assert set(values.unique().tolist()) == set(range(1 + task.keys, 20))
    assert task.keys + task.values + 1 == 20
    assert set(targets[targets != -100].tolist()) <= set(values.unique().tolist())


def test_queries_come_in_random_order():
    inputs, _ = MultiQueryRecall(31, 64, pairs=8, vocab_size=64, seed=0).batch(0)
    asked_first = inputs[:, 16]
    places = (inputs[:, :16:2] == asked_first[:, None]).int().argmax(1)
    assert len(places.unique()) == 8


def test_heldout_is_fixed_and_apart_from_training():
    task = MultiQueryRecall(15, 2, pairs=4, vocab_size=99, seed=0)
    heldout = task.heldout(3)
    assert len(heldout) == 3
    assert all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(heldout, task.heldout(3), strict=True)
    )
    seen = [task.batch(step)[0] for step in range(20)]
    assert not any(torch.equal(inputs, other) for inputs, _ in heldout for other in seen)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seq_len": 14}, r"seq_len must be at least 4\*pairs - 1 = 15"),
        ({"vocab_size": 8}, r"vocab_size must be at least 2\*pairs \+ 1 = 9"),
        ({"pairs": 0}, "batch_size and pairs must be at least 1, got 2 and 0"),
        ({"batch_size": 0}, "batch_size and pairs must be at least 1, got 0 and 4"),
    ],
    ids=["length", "vocabulary", "pairs", "batch"],
)
def test_sizes_that_do_not_fit_are_named(change, named):
    sizes = {"seq_len": 15, "batch_size": 2, "pairs": 4, "vocab_size": 9, "seed": 0}
    with pytest.raises(ValueError, match=named):
        MultiQueryRecall(**{**sizes, **change})
