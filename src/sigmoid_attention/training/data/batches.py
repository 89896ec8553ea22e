"""Batches of text as a pure function of (seed, step): resuming at a step needs no state.

Shapes: B sequences of N tokens.
"""

import hashlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from sigmoid_attention.nn.sizes import instance, whole_between
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import Tokenizer
from sigmoid_attention.training.seeds import step_generator


class Batches(Protocol):
    """The interface of training data: text in this file, synthetic tasks in `training.tasks`."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `step`, both (B, N) int64; a target of -100 is not scored."""
        ...

    def describe(self) -> dict[str, Any]:
        """Everything that determines the batches, as JSON; a resumed run must have the same."""
        ...


def token_stream(tokenizer: Tokenizer, documents: Sequence[Document]) -> Tensor:
    """The int32 token ids of all documents, each followed by the end-of-document token.

    Example:
        >>> from sigmoid_attention.training.data.tokenizer import ByteTokenizer
        >>> token_stream(ByteTokenizer(), [Document("a", b"hi"), Document("b", b"!")]).tolist()
        [104, 105, 256, 33, 256]
    """
    pieces = [
        torch.tensor([*tokenizer.encode(document.text), tokenizer.eos], dtype=torch.int32)
        for document in documents
    ]
    return torch.cat([torch.empty(0, dtype=torch.int32), *pieces])


class TextBatches:
    """Sequences cut from a token stream at uniformly random positions.

    `tokens` is 1-D of any integer type; `batch(step)` gives inputs and the same shifted by one,
    each (batch_size, seq_len) int64.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a size is not positive, or the stream is shorter than one sequence.

    Example:
        >>> batches = TextBatches(torch.arange(100), seq_len=5, batch_size=2, seed=0)
        >>> inputs, targets = batches.batch(step=3)
        >>> inputs.shape, bool((targets == inputs + 1).all())
        (torch.Size([2, 5]), True)
    """

    def __init__(self, tokens: Tensor, seq_len: int, batch_size: int, seed: int) -> None:
        instance("tokens", tokens, Tensor, "a tensor")
        for name, size in (("seq_len", seq_len), ("batch_size", batch_size)):
            whole_between(name, size, 1, 2**63 - 1, "at least 1")
        instance("seed", seed, Integral, "a whole number")
        if len(tokens) < seq_len + 1:
            raise ValueError(
                f"the corpus has {len(tokens)} tokens, which is shorter than one sequence: "
                f"seq_len {seq_len} and the token after it"
            )
        self.tokens = tokens
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        starts_B1 = torch.randint(
            len(self.tokens) - self.seq_len,
            (self.batch_size, 1),
            generator=step_generator(self.seed, step),
        )
        windows = self.tokens[starts_B1 + torch.arange(self.seq_len + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    def describe(self) -> dict[str, Any]:
        content = hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()
        return {
            "kind": "text",
            "tokens_sha256": content,
            "seq_len": self.seq_len,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
