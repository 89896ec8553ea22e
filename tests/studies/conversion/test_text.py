"""Sequences come from the text that they should come from, the same ones for the same seed."""

import pytest

from sigmoid_attention.studies.conversion.parents import load_parent
from sigmoid_attention.studies.conversion.text import Sequences
from sigmoid_attention.training.data.corpus import load_corpus
from tests.studies.conversion.made import SPECIAL, checkpoint, text


@pytest.fixture(scope="module", params=["llama", "bert"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    parent = load_parent(str(checkpoint(folder / "model", request.param)))
    return parent, load_corpus(text(folder))


def sequences(made, **changes):
    return Sequences(*made, **{"seq_len": 32, "batch_size": 3, "seed": 0, **changes})


def rows_of(tokens):
    return {tuple(tokens[i : i + 8].tolist()) for i in range(len(tokens) - 7)}


def test_a_step_is_the_same_for_a_seed_and_another_for_another(made):
    first = sequences(made).batch(5)["input_ids"]
    assert first.equal(sequences(made).batch(5)["input_ids"])
    for other in (sequences(made).batch(6), sequences(made, seed=1).batch(5)):
        assert first.shape != other["input_ids"].shape or not first.equal(other["input_ids"])


def test_training_and_held_out_sequences_come_from_their_own_part(made):
    of = sequences(made)
    train, heldout = rows_of(of.train), rows_of(of.heldout)
    inside = slice(None) if made[0].causal else slice(1, -1)
    for step in range(4):
        for row in of.batch(step)["input_ids"]:
            assert tuple(row[inside][:8].tolist()) in train
    for batch in of.heldout_batches(7):
        for row in batch["input_ids"]:
            cut = tuple(row[inside][:8].tolist())
            assert cut in heldout and cut not in train


def test_held_out_sequences_are_as_many_as_asked_for(made):
    batches = sequences(made).heldout_batches(7)
    assert sum(len(batch["input_ids"]) for batch in batches) == 7


def test_a_causal_model_reads_full_length_and_an_encoder_all_lengths(made):
    of = sequences(made)
    batches = [of.batch(step)["input_ids"] for step in range(40)]
    lengths = {ids.shape[1] for ids in batches}
    if made[0].causal:
        assert lengths == {32}
        assert int((of.train == SPECIAL.index("[SEP]")).sum()) == 1
    else:
        assert min(lengths) >= 16 and max(lengths) <= 32 and len(lengths) > 5
        assert all((ids[:, 0] == 1).all() and (ids[:, -1] == 2).all() for ids in batches)
        assert all((ids[:, 1:-1] > 3).all() for ids in batches)


def test_a_short_text_is_refused(made, tmp_path):
    corpus = load_corpus(text(tmp_path, words=100))
    with pytest.raises(ValueError, match=r"data is too short: \d+ tokens held out"):
        sequences((made[0], corpus))
