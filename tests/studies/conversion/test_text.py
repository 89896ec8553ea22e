"""The sequences come from the right part of the text, and are equal for equal seeds."""

import pytest
import torch

from sigmoid_attention.studies.conversion.parents import load_parent
from sigmoid_attention.studies.conversion.text import TokenSequences, repeating
from sigmoid_attention.training.data.corpus import load_corpus
from tests.support.conversion.checkpoints import SPECIAL, checkpoint, text


@pytest.fixture(scope="module", params=["llama", "bert"])
def parent_and_text(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    parent = load_parent(str(checkpoint(folder / "model", request.param)))
    return parent, load_corpus(text(folder))


def sequences(parent_and_text, **changes):
    return TokenSequences(
        *parent_and_text, **{"seq_len": 32, "batch_size": 3, "seed": 0, **changes}
    )


def rows_of(tokens):
    return {tuple(tokens[i : i + 8].tolist()) for i in range(len(tokens) - 7)}


def test_a_step_is_the_same_for_a_seed_and_another_for_another(parent_and_text):
    first = sequences(parent_and_text).batch(5)["input_ids"]
    assert first.equal(sequences(parent_and_text).batch(5)["input_ids"])
    for other in (sequences(parent_and_text).batch(6), sequences(parent_and_text, seed=1).batch(5)):
        assert first.shape != other["input_ids"].shape or not first.equal(other["input_ids"])


def test_training_and_held_out_sequences_come_from_their_own_part(parent_and_text):
    of = sequences(parent_and_text)
    train, heldout = rows_of(of.train), rows_of(of.heldout)
    inside = slice(None) if parent_and_text[0].causal else slice(1, -1)
    for step in range(4):
        for row in of.batch(step)["input_ids"]:
            assert tuple(row[inside][:8].tolist()) in train
    for batch in of.heldout_batches(7):
        for row in batch["input_ids"]:
            cut = tuple(row[inside][:8].tolist())
            assert cut in heldout and cut not in train


def test_held_out_sequences_are_as_many_as_asked_for(parent_and_text):
    batches = sequences(parent_and_text).heldout_batches(7)
    assert sum(len(batch["input_ids"]) for batch in batches) == 7


def test_a_causal_model_reads_full_length_and_an_encoder_all_lengths(parent_and_text):
    of = sequences(parent_and_text)
    batches = [of.batch(step)["input_ids"] for step in range(40)]
    lengths = {ids.shape[1] for ids in batches}
    if parent_and_text[0].causal:
        assert lengths == {32}
        assert int((of.train == SPECIAL.index("[SEP]")).sum()) == 1
    else:
        assert min(lengths) >= 16 and max(lengths) <= 32 and len(lengths) > 5
        assert all((ids[:, 0] == 1).all() and (ids[:, -1] == 2).all() for ids in batches)
        assert all((ids[:, 1:-1] > 3).all() for ids in batches)


def test_stretches_come_again_in_training_and_only_there(parent_and_text):
    plain, half = (
        sequences(parent_and_text, seq_len=250),
        sequences(parent_and_text, seq_len=250, repeats=0.5),
    )
    for mine, theirs in zip(half.heldout_batches(4), plain.heldout_batches(4), strict=True):
        assert mine["input_ids"].equal(theirs["input_ids"])
    rows, same = half.batch(1)["input_ids"], plain.batch(1)["input_ids"]
    if not parent_and_text[0].causal:
        assert rows.equal(same)
        return
    assert rows.shape == same.shape and rows.equal(half.batch(1)["input_ids"])
    assert not rows.equal(same)
    # A row holds its own text from the beginning, and nothing is skipped.
    for row, text_N in zip(rows, same, strict=True):
        assert set(row.tolist()) <= set(text_N.tolist())
        assert row[:16].equal(text_N[:16])


def test_about_the_share_that_was_asked_for_comes_again():
    generator = torch.Generator().manual_seed(0)
    for share in (0.25, 0.5):
        new = [len(repeating(torch.arange(4096), share, generator).unique()) for _ in range(8)]
        assert sum(new) / (8 * 4096) == pytest.approx(1 - share, abs=0.05)


def test_a_stretch_comes_again_at_any_distance():
    row = repeating(torch.arange(4096), 0.5, torch.Generator().manual_seed(0))
    first = {}
    distances = [place - first.setdefault(int(token), place) for place, token in enumerate(row)]
    again = sorted(distance for distance in distances if distance)
    assert again[0] < 128 and again[-1] > 2048 and 256 < again[len(again) // 2] < 2048


def test_a_short_text_is_refused(parent_and_text, tmp_path):
    corpus = load_corpus(text(tmp_path, words=100))
    with pytest.raises(ValueError, match=r"text.txt' is too short: \d+ tokens held out"):
        sequences((parent_and_text[0], corpus))
