"""Tokenizers reproduce all bytes exactly."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigmoid_attention.training.data.corpus import Corpus, Document
from sigmoid_attention.training.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    load_tokenizer,
    tokenizer_for,
)

TEXTS = [b"def attend(query, key, value):\n    return query\n" * 9, "naïve Привет".encode() * 9]
BPE = BPETokenizer.train(TEXTS, vocab_size=300)
BOTH = pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
texts = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=40).map(str.encode),
    st.lists(st.sampled_from([b"query", b" key", b"\n    ", b"\x85", b"\xa0", b"9"])).map(b"".join),
)


@BOTH
@given(text=texts)
def test_decode_undoes_encode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= number < tokenizer.eos for number in ids)
    assert tokenizer.decode([*ids, tokenizer.eos]) == text
    # The length in bytes of a text is the sum over its tokens: what bits per byte counts.
    assert sum(len(tokenizer.decode([number])) for number in ids) == len(text)


@BOTH
def test_saved_and_read_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer) and again.vocab_size == tokenizer.vocab_size
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)
    json.loads((tmp_path / "tokenizer.json").read_text())


def test_every_byte_is_in_the_vocabulary_and_the_end_is_not_text():
    assert {BPE.decode([number]) for number in range(BPE.eos)} >= {bytes([n]) for n in range(256)}
    assert BPE.vocab_size == 300 and BPE.eos == 299


def test_merges_shorten_what_they_were_trained_on():
    assert len(BPE.encode(TEXTS[0])) < 0.5 * len(TEXTS[0])
    assert max(len(BPE.decode([number])) for number in BPE.encode("Привет".encode())) > 2


def test_training_is_deterministic():
    again = BPETokenizer.train(TEXTS, vocab_size=300)
    assert [again.decode([i]) for i in range(299)] == [BPE.decode([i]) for i in range(299)]


def test_merges_may_run_out():
    assert BPETokenizer.train([b"ab"], vocab_size=5000).vocab_size == 258


def test_fewer_tokens_than_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257.*got 256"):
        BPETokenizer.train(TEXTS, vocab_size=256)


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "bpe"}', '{"kind": "bpe", "model": {}}'])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ValueError, match=r"t\.json is damaged"):
        load_tokenizer(tmp_path / "t.json")


@pytest.mark.parametrize(("vocab_size", "kind"), [(257, ByteTokenizer), (263, BPETokenizer)])
def test_the_vocabulary_decides_the_tokenizer(vocab_size, kind):
    corpus = Corpus([Document("a", b"lower lowest low " * 30)], [], None)
    tokenizer = tokenizer_for(vocab_size, corpus)
    assert isinstance(tokenizer, kind) and tokenizer.vocab_size <= vocab_size
