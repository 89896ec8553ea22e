"""Pieces of the held-out text, and the bigram baseline."""

import math

import pytest

from sigmoid_attention.studies.compare.bigram import bigram_bits_per_byte
from sigmoid_attention.studies.compare.text import spread
from sigmoid_attention.training.data.corpus import Document


def documents(*texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


@pytest.mark.parametrize(("piece", "most", "count"), [(7, 100, 12), (7, 40, 4), (100, 9, 1)])
def test_pieces_come_from_everywhere(piece, most, count):
    held = documents(bytes(range(40)), bytes(range(100, 140)))
    pieces = spread(held, piece, most)
    assert len(pieces) == count and sum(len(p.text) for p in pieces) <= max(most, piece)
    if count > 1:
        assert {p.name for p in pieces} == {"0", "1"}
    # Each is cut from one document, in order.
    assert all(p.text in held[int(p.name)].text for p in pieces)


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
