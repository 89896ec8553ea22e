"""Token sequences for a conversion, as a pure function of (seed, step), and held-out sequences.

Shapes: B sequences of N tokens.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.studies.conversion.parents import Parent
from sigmoid_attention.training.data.corpus import Corpus, Document
from sigmoid_attention.training.seeds import step_generator

SHORTEST = 16
# The length of a stretch in tokens is drawn from this range; its end is excluded.
STRETCH = (16, 65)


class TokenSequences:
    """Batches of equally long sequences, cut from a text at random positions.

    For a causal model all sequences have ``seq_len`` tokens. An encoder reads texts of any length,
    so each batch has its own length between 16 and ``seq_len``, including the special tokens.

    In a causal model's training sequences, about a share ``repeats`` of the tokens repeats an
    earlier stretch of the same sequence, at any distance. Predicting them needs retrieval, which
    ordinary text needs less often than the use of a model.

    Raises:
        ValueError: the text, or its held-out part, is shorter than one sequence.
    """

    def __init__(
        self,
        parent: Parent,
        corpus: Corpus,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        repeats: float = 0.0,
    ) -> None:
        self.source = repr(corpus.provenance.source)
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats if parent.causal else 0.0
        self._ends = ([], []) if parent.causal else _special_tokens(parent)
        self._one_length = parent.causal
        self.train = _tokens(parent, corpus.train)
        self.heldout = _tokens(parent, corpus.heldout)
        for part, tokens in (("to train on", self.train), ("held out", self.heldout)):
            if len(tokens) <= seq_len:
                raise ValueError(
                    f"data: {self.source} is too short: {len(tokens)} tokens "
                    f"{part}, and one sequence has {seq_len}"
                )

    def batch(self, step: int) -> dict[str, Tensor]:
        """The arguments of ``forward`` for one step."""
        generator = step_generator(self.seed, step)
        cut = self._cut(self.train, self._length(generator), self.batch_size, generator)
        if self.repeats:
            rows = [repeating(row_N, self.repeats, generator) for row_N in cut["input_ids"]]
            cut["input_ids"] = torch.stack(rows)
        return cut

    def heldout_batches(self, sequences: int) -> list[dict[str, Tensor]]:
        """Held-out sequences, the same for every seed and model."""
        made = []
        for first in range(0, sequences, self.batch_size):
            generator = step_generator(0, first, heldout=True)
            size = min(self.batch_size, sequences - first)
            made.append(self._cut(self.heldout, self._length(generator), size, generator))
        return made

    def describe(self) -> dict[str, Any]:
        """Everything that determines the batches."""
        content = hashlib.sha256(self.train.numpy().tobytes()).hexdigest()
        return {
            "tokens_sha256": content,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "repeats": self.repeats,
        }

    def _length(self, generator: torch.Generator) -> int:
        if self._one_length:
            return self.seq_len
        # Uniform in the logarithm of the length, because short sentences are more frequent.
        share = torch.rand((), generator=generator, dtype=torch.float32).item()
        return round(SHORTEST * (self.seq_len / SHORTEST) ** share)

    def _cut(
        self, tokens: Tensor, length: int, size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        before, after = (torch.tensor(ids, dtype=torch.long) for ids in self._ends)
        inside = length - len(before) - len(after)
        starts_B1 = torch.randint(len(tokens) - inside, (size, 1), generator=generator)
        cut_BN = tokens[starts_B1 + torch.arange(inside)].long()
        parts = before.expand(size, -1), cut_BN, after.expand(size, -1)
        return {"input_ids": torch.cat(parts, dim=1)}


def repeating(row_N: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The row with repeated stretches, truncated at the end to its length.

    Each stretch has 16 to 64 tokens. With probability 1 - ``share`` it continues the text;
    otherwise it repeats a random earlier stretch.

    Example:
        >>> row = repeating(torch.arange(200), 0.5, torch.Generator().manual_seed(0))
        >>> len(row), len(row.unique()) < 200
        (200, True)
    """
    made, read, done = [], 0, 0
    while done < len(row_N):
        length = min(int(torch.randint(*STRETCH, (), generator=generator)), len(row_N) - done)
        repeats_text = torch.rand((), generator=generator, dtype=torch.float32).item() < share
        if repeats_text and length < read:
            start = int(torch.randint(read - length, (), generator=generator))
        else:
            start, read = read, read + length
        made.append(row_N[start : start + length])
        done += length
    return torch.cat(made)


def _special_tokens(parent: Parent) -> tuple[list[int], list[int]]:
    """The special tokens that an encoder's tokenizer adds before and after a text."""
    empty: Any = parent.tokenizer("")["input_ids"]
    return empty[:1], empty[1:]


def _tokens(parent: Parent, documents: Sequence[Document]) -> Tensor:
    """All documents as one row of token ids, each followed by a causal model's end token."""
    end: Any = parent.tokenizer.eos_token_id if parent.causal else None
    ids: list[int] = []
    for document in documents:
        text = document.text.decode("utf-8", "replace")
        encoded: Any = parent.tokenizer(text, add_special_tokens=False, verbose=False)
        ids += encoded["input_ids"]
        ids += [] if end is None else [end]
    return torch.tensor(ids, dtype=torch.int32)
