"""Byte-level tokenizers, which are lossless for any bytes."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.training.data.corpus import Corpus
from sigmoid_attention.training.files import read_json, reading, write_json

with lab_imports("sigmoid_attention.training"):
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

# Words with their leading space, numbers, punctuation, white space. Every byte above 127 counts
# as a letter, so that no UTF-8 character is split between two words.
WORDS = " ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^ \t\n\r\x0b\x0cA-Za-z0-9\x80-\xff]+|[ \t\n\r\x0b\x0c]+"

# The tokenizers library allocates all of them at once, and aborts the process if it cannot.
MOST_TOKENS = 2**24


class Tokenizer(Protocol):
    """The interface of a tokenizer; `eos` is the end-of-document token."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos(self) -> int: ...
    def encode(self, text: bytes) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> bytes: ...
    def save(self, path: Path) -> None: ...


class ByteTokenizer:
    """One token per byte, 0 to 255, and 256 for the end of a document.

    Example:
        >>> ByteTokenizer().encode("né".encode())
        [110, 195, 169]
    """

    eos = 256
    vocab_size = 257

    def encode(self, text: bytes) -> list[int]:
        return list(text)

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`; the end of a document has none."""
        return bytes(number for number in ids if number != self.eos)

    def save(self, path: Path) -> None:
        write_json(path, {"kind": "byte"})


class BPETokenizer:
    """Byte-pair encoding over bytes, trained on the user's own text (Sennrich et al. 2016).

    Each byte is passed as its Latin-1 character, so all 256 bytes are in the vocabulary, nothing
    is normalised, and `decode(encode(text)) == text` for any bytes.

    Example:
        >>> tokenizer = BPETokenizer.train([b"low lower lowest " * 20], vocab_size=262)
        >>> ids = tokenizer.encode(b"lowest \\xff")
        >>> len(ids) < 8, tokenizer.decode(ids)
        (True, b'lowest \\xff')
    """

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        self._model = model
        by_id = sorted((number, piece) for piece, number in model.get_vocab().items())
        self._pieces = [piece.encode("latin-1") for _, piece in by_id]
        # The end-of-document token is not part of the trained model, so no text encodes to it.
        self.eos = len(self._pieces)
        self.vocab_size = self.eos + 1

    @classmethod
    def train(cls, texts: Iterable[bytes], vocab_size: int) -> "BPETokenizer":
        """Learn merges from `texts` up to `vocab_size` tokens, or fewer if no pair is left.

        Raises:
            ValueError: `vocab_size` is below 257 (256 bytes and the end of a document) or above
                2**24.
        """
        if not 257 <= vocab_size <= MOST_TOKENS:
            raise ValueError(
                f"vocab_size must be at least 257 (256 bytes and the end of a document) "
                f"and at most 2**24, got {vocab_size}"
            )
        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=[chr(byte) for byte in range(256)],
            show_progress=False,
        )
        model.train_from_iterator((text.decode("latin-1") for text in texts), trainer)
        return cls(model)

    def encode(self, text: bytes) -> list[int]:
        return self._model.encode(text.decode("latin-1")).ids

    def decode(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`; the end of a document has none."""
        return b"".join(self._pieces[number] for number in ids if number != self.eos)

    def save(self, path: Path) -> None:
        write_json(path, {"kind": "bpe", "model": json.loads(self._model.to_str())})


def tokenizer_for(vocab_size: int, corpus: Corpus) -> Tokenizer:
    """A byte tokenizer for the smallest vocabulary, else byte pairs learnt from `corpus`."""
    if vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    return BPETokenizer.train((document.text for document in corpus.train), vocab_size)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer that `save` wrote.

    Raises:
        Damaged: the file is not a tokenizer that this library saved.
        OSError: the file does not exist or cannot be read.
    """
    fields = read_json(path)
    with reading(path):
        if fields["kind"] == "byte":
            return ByteTokenizer()
        return BPETokenizer(_model(fields["model"]))


def _model(fields: dict) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(fields))
    # The tokenizers library raises a plain Exception for an invalid model.
    except Exception as error:
        raise ValueError(error) from error
