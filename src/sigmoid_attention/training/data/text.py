"""A corpus prepared for training: its tokenizer, training tokens and held-out text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from torch import Tensor

from sigmoid_attention.training.data.batches import token_stream
from sigmoid_attention.training.data.corpus import Corpus, Document
from sigmoid_attention.training.data.tokenizer import Tokenizer, tokenizer_for


@dataclass(frozen=True)
class Text:
    """A corpus with its tokenizer, the tokens of its training part, and its test documents."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: Tensor
    heldout: list[Document]

    @classmethod
    def prepare(cls, corpus: Corpus, vocab_size: int, heldout_bytes: int) -> "Text":
        """Tokenize a corpus with `vocab_size` tokens, and sample the test documents."""
        tokenizer = tokenizer_for(vocab_size, corpus)
        tokens = token_stream(tokenizer, corpus.train)
        return cls(corpus, tokenizer, tokens, sample(corpus.heldout, heldout_bytes))

    @property
    def bits_per_nat(self) -> float:
        """The factor from nats per token to bits per byte, averaged over the training text."""
        size = sum(len(document.text) for document in self.corpus.train)
        return len(self.tokens) / (size * math.log(2))

    def prompt(self, most: int) -> bytes:
        """The beginning of the held-out text: at most `most` bytes, of whole words if possible.

        Example:
            >>> from sigmoid_attention.training.data.corpus import Provenance
            >>> documents = [Document("a", b"The first words of a text")]
            >>> Text(None, None, None, documents).prompt(12)
            b'The first'
        """
        start = b"".join(document.text[: most + 1] for document in self.heldout)[: most + 1]
        return (start[:most] if len(start) <= most else start.rpartition(b" ")[0]) or start[:most]

    def check_lengths(self, training: int, longest: int) -> None:
        """Raise ``ValueError``, before any training, if a part is shorter than one sequence.

        `training` is the training length in tokens, `longest` the longest tested length.
        """
        held_out = len(token_stream(self.tokenizer, self.heldout))
        for part, tokens, length in (
            ("training", len(self.tokens), training),
            ("held-out", held_out, longest),
        ):
            if tokens < length + 1:
                raise ValueError(
                    f"data: {self.corpus.provenance.source!r} is too short: its {part} part has "
                    f"{tokens} tokens, which is shorter than one sequence of {length} and the "
                    f"token after it"
                )


def sample(documents: Sequence[Document], most: int) -> list[Document]:
    """Documents of at most `most` bytes together, the last one truncated.

    Documents are taken in the order of their names' hashes, which is reproducible and not
    alphabetical. They are taken whole: the beginnings of all documents would be atypical text.

    Example:
        >>> documents = [Document(name, b"text of " + name.encode()) for name in "abc"]
        >>> [document.text for document in sample(documents, 12)]
        [b'text of c', b'tex']
    """
    chosen, left = [], most
    for document in sorted(
        documents, key=lambda d: sha256(d.name.encode(errors="surrogateescape")).digest()
    ):
        if left <= 0:
            break
        chosen.append(Document(document.name, document.text[:left]))
        left -= len(document.text)
    return chosen
