"""Copying: labels against the string before the separator."""

import pytest
import torch

from sigmoid_attention.training.tasks import Copying


@pytest.mark.parametrize(("seq_len", "vocab_size"), [(2, 3), (10, 5), (34, 257)], ids="n{0}".format)
def test_labels_are_the_string_again(seq_len, vocab_size):
    task = Copying(seq_len, 6, vocab_size, seed=2)
    for step in range(3):
        inputs, targets = task.batch(step)
        assert inputs.shape == targets.shape == (6, seq_len) and inputs.dtype == torch.int64
        for row, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
            separator = row.index(0)
            assert separator == seq_len // 2 and row.count(0) == 1
            assert [label for label in labels if label != -100] == row[:separator]
            assert labels[separator:] == row[:separator], "scored from the separator on"
            assert row[separator + 1 :] == labels[separator:-1], "each answer is then read"
    assert inputs.max() < vocab_size


def test_heldout_is_fixed_and_apart_from_training():
    task = Copying(20, 2, vocab_size=99, seed=0)
    (first, _), (second, _) = task.heldout(2)
    assert torch.equal(first, task.heldout(1)[0][0]) and not torch.equal(first, second)
    assert not any(torch.equal(first, task.batch(step)[0]) for step in range(20))


@pytest.mark.parametrize(
    "wrong", [{"seq_len": 7}, {"seq_len": 0}, {"batch_size": 0}, {"vocab_size": 2}], ids=str
)
def test_sizes_that_do_not_fit_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be .*got {value}"):
        Copying(**{"seq_len": 8, "batch_size": 1, "vocab_size": 9, "seed": 0, **wrong})
