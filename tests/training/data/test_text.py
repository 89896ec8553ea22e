"""A corpus prepared for training, and the sample for tests of models."""

import math

import pytest

from sigmoid_attention.training.data.corpus import Document, load_corpus
from sigmoid_attention.training.data.text import Text, sample


def documents(*texts):
    return [Document(str(i), text) for i, text in enumerate(texts)]


def test_a_sample_is_whole_documents_and_part_of_the_last():
    held = documents(*(bytes([65 + i]) * 7 for i in range(9)))
    chosen = sample(held, 24)
    assert [len(document.text) for document in chosen] == [7, 7, 7, 3]
    assert all(document.text == document.text[:1] * len(document.text) for document in chosen)
    assert [d.name for d in chosen] == [d.name for d in sample(held[::-1], 24)]
    assert [d.name for d in chosen] != sorted(d.name for d in chosen)


def test_a_sample_larger_than_all_is_all():
    held = documents(b"one", b"two")
    assert {d.text for d in sample(held, 10**9)} == {b"one", b"two"}


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
