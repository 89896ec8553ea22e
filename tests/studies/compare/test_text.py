"""What the language-modelling part reads, and what a text gives away without attention."""

import math

import pytest

from sigmoid_attention.studies.compare.bigram import bigram_bits_per_byte
from sigmoid_attention.studies.compare.text import Text, sample, spread
from sigmoid_attention.training.data.corpus import Document, load_corpus


def documents(*texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


def test_a_sample_is_whole_documents_and_part_of_the_last():
    held = documents(*(bytes([65 + i]) * 7 for i in range(9)))
    chosen = sample(held, 24)
    assert [len(document.text) for document in chosen] == [7, 7, 7, 3]
    assert all(document.text == document.text[:1] * len(document.text) for document in chosen)
    assert [d.name for d in chosen] == [d.name for d in sample(held[::-1], 24)]
    assert [d.name for d in chosen] != sorted(d.name for d in chosen)


@pytest.mark.parametrize(("piece", "most", "count"), [(7, 100, 12), (7, 40, 4), (100, 9, 1)])
def test_pieces_come_from_everywhere(piece, most, count):
    held = documents(bytes(range(40)), bytes(range(100, 140)))
    found = spread(held, piece, most)
    assert len(found) == count and sum(len(p.text) for p in found) <= max(most, piece)
    if count > 1:
        assert {p.name for p in found} == {"0", "1"}
    # Each is cut from one document, in order.
    assert all(p.text in held[int(p.name)].text for p in found)


def test_a_sample_larger_than_all_is_all():
    held = documents(b"one", b"two")
    assert {d.text for d in sample(held, 10**9)} == {b"one", b"two"}


def test_pairs_of_a_text_without_structure_cost_their_entropy():
    # Each of two bytes follows each equally often: one bit a byte.
    train = documents(b"aabb" * 5000)
    assert bigram_bits_per_byte(train, documents(b"aabbaabba")) == pytest.approx(1, abs=0.08)


def test_a_pair_that_training_never_saw_is_unlikely_but_possible():
    assert bigram_bits_per_byte(documents(b"aaaa"), documents(b"xy")) == math.log2(256)


def test_pairs_do_not_reach_over_the_end_of_a_document():
    assert bigram_bits_per_byte(documents(b"ab", b"ab"), documents(b"ab")) == pytest.approx(
        -math.log2(3 / 258)
    )
    with pytest.raises(ValueError, match="no two bytes"):
        bigram_bits_per_byte(documents(b"ab"), documents(b"a", b"b"))


def test_a_text_knows_what_it_is_tested_on(tmp_path):
    for name in "abcdefghijklmnopqrst":
        (tmp_path / name).write_text(f"the text of {name} " * 20)
    text = Text.prepare(load_corpus(tmp_path), 257, heldout_bytes=500)
    assert sum(len(document.text) for document in text.heldout) <= 500
    trained_on = {document.name for document in text.corpus.train}
    assert not trained_on & {document.name for document in text.heldout}


@pytest.mark.parametrize(
    ("texts", "most", "prompt"),
    [
        ((b"one two three",), 7, b"one two"),
        ((b"one two three",), 6, b"one"),
        ((b"one two three",), 99, b"one two three"),
        ((b"", b"one", b" two"), 99, b"one two"),
        ((b"unbroken",), 5, b"unbro"),
        ((b" leading",), 5, b" lead"),
    ],
    ids=str,
)
def test_a_prompt_is_the_beginning_of_the_held_out_text(texts, most, prompt):
    assert Text(None, None, None, documents(*texts)).prompt(most) == prompt  # pyright: ignore


def test_nats_per_token_become_bits_per_byte(tmp_path):
    for name in "abcdefghijklmnopqrst":
        (tmp_path / name).write_text(f"the text of {name} " * 20)
    corpus = load_corpus(tmp_path)
    text = Text.prepare(corpus, 257, heldout_bytes=500)
    size = sum(len(document.text) for document in corpus.train)
    # A token a byte, and one more at the end of every document.
    assert text.bits_per_nat == pytest.approx((size + len(corpus.train)) / size / math.log(2))
