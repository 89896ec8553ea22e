"""Evaluates a trained model: bits per byte of a text, accuracy on a task.

Shapes: B windows of N tokens, V entries in the vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.training.data.batches import token_stream
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import Tokenizer

TOKENS_AT_ONCE = 4096


@torch.no_grad()
def bits_per_byte(
    model: nn.Module,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    seq_len: int,
    device: str | torch.device = "cpu",
    max_bytes: int | None = None,
) -> float:
    """Mean code length of `documents` under `model`, in bits per byte of text.

        bits per byte = (sum over scored tokens of -ln p(token)) / (ln 2 * number of their bytes)

    The documents form one stream, each followed by the end-of-document token, and are read in
    windows of `seq_len` tokens that do not overlap, so that the same bytes are scored at every
    `seq_len` (the last window may be shorter). The end-of-document token is read but not scored:
    it is no byte of the text. Loss per byte makes models with different tokenizers comparable.
    With `max_bytes`, only the beginning of every document is read, the same share of each.

    Raises:
        ValueError: `seq_len` is not positive, the stream is shorter than one sequence, or no
            byte is scored.

    Example:
        >>> from sigmoid_attention.training.data.tokenizer import ByteTokenizer
        >>> uniform = nn.Embedding.from_pretrained(torch.zeros(257, 257))
        >>> value = bits_per_byte(uniform, ByteTokenizer(), [Document("a", b"some text")], 4)
        >>> abs(value - math.log2(257)) < 1e-6
        True
    """
    if seq_len < 1:
        raise ValueError(f"seq_len must be at least 1, got {seq_len}")
    tokens = token_stream(tokenizer, _heads(documents, max_bytes)).long()
    if len(tokens) < seq_len + 1:
        raise ValueError(
            f"the held-out text has {len(tokens)} tokens, which is shorter than one sequence: "
            f"seq_len {seq_len} and the token after it"
        )
    bytes_of_V = torch.tensor(
        [len(tokenizer.decode([number])) for number in range(tokenizer.vocab_size)]
    )
    scored_bytes = int(bytes_of_V[tokens[1:]].sum())
    if scored_bytes == 0:
        raise ValueError("the held-out text has no byte to score")
    was_training = model.training
    model.eval()
    nats = 0.0
    for window_B in _windows(tokens, seq_len):
        inputs_BN, targets_BN = window_B[:, :-1], window_B[:, 1:]
        logits_BNV = model(inputs_BN.to(device)).float()
        loss_BN = F.cross_entropy(logits_BNV.mT, targets_BN.to(device), reduction="none").cpu()
        scored_BN = targets_BN != tokenizer.eos
        nats += loss_BN[scored_BN].double().sum().item()
    model.train(was_training)
    return nats / (math.log(2) * scored_bytes)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share in [0, 1] of scored targets (not -100) that are the model's most likely token.

    Example:
        >>> one_hot = nn.Embedding.from_pretrained(torch.eye(5))
        >>> accuracy(one_hot, [(torch.tensor([[1, 2, 3]]), torch.tensor([[1, -100, 4]]))])
        0.5
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = scored = 0
    for inputs, targets in batches:
        predicted = model(inputs.to(device)).argmax(-1).cpu()
        counts = targets != -100
        right += int((predicted == targets)[counts].sum())
        scored += int(counts.sum())
    model.train(was_training)
    return right / scored


def _heads(documents: Sequence[Document], max_bytes: int | None) -> list[Document]:
    total = sum(len(document.text) for document in documents)
    share = 1.0 if max_bytes is None else min(1.0, max_bytes / max(total, 1))
    return [
        Document(document.name, document.text[: math.floor(len(document.text) * share)])
        for document in documents
    ]


def _windows(tokens: Tensor, seq_len: int) -> Iterator[Tensor]:
    """Windows with one token of overlap, so that every token but the first is a target once."""
    full_windows = (len(tokens) - 1) // seq_len
    windows = tokens[: full_windows * seq_len + 1].unfold(0, seq_len + 1, seq_len)
    yield from windows.split(max(1, TOKENS_AT_ONCE // seq_len))
    if len(tokens) - 1 > full_windows * seq_len:
        yield tokens[full_windows * seq_len :][None]
