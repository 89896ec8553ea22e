"""Where in a text a decoder's loss lies: the code length of each token, by context and by place.

Shape letters: W windows of N tokens, the targets of which are the tokens one place on.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.training.data.batches import token_stream
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import Tokenizer

# Copying from the context continues a sequence that stood before: of this many tokens.
GRAM = 4
SEEN, NEW = "bits_after_seen", "bits_after_new"
PARTS = 8
TOKENS_AT_ONCE = 4096


def whole_windows(tokenizer: Tokenizer, documents: Sequence[Document], length: int) -> Tensor:
    """The documents as windows (W, length + 1), each with the target of its last token.

    Example:
        >>> from sigmoid_attention.training.data.tokenizer import ByteTokenizer
        >>> whole_windows(ByteTokenizer(), [Document("a", b"abcde")], 2).tolist()
        [[97, 98, 99], [99, 100, 101]]
    """
    return token_stream(tokenizer, documents).long().unfold(0, length + 1, length)


@torch.no_grad()
def bits_of_targets(model: DecoderLM, windows: Tensor) -> Tensor:
    """The code length of each target of whole windows, (W, N), in bits."""
    was_training = model.training
    model.eval()
    parts = []
    for window in windows.split(max(1, TOKENS_AT_ONCE // windows.shape[1])):
        logits = model(window[:, :-1]).float()
        nats = F.cross_entropy(logits.mT, window[:, 1:], reduction="none")
        parts.append(nats / math.log(2))
    model.train(was_training)
    return torch.cat(parts)


def continues_seen(windows: Tensor, gram: int = GRAM) -> Tensor:
    """Whether the ``gram`` tokens before a target stood earlier in its window, (W, N).

    Example:
        >>> window = torch.tensor([[1, 2, 9, 1, 2, 7]])
        >>> continues_seen(window, gram=2).tolist()
        [[False, False, False, False, True]]
    """
    rows = []
    for tokens in windows[:, :-1].tolist():
        before, row = set(), []
        for end in range(1, len(tokens) + 1):
            last = tuple(tokens[end - gram : end]) if end >= gram else None
            row.append(last is not None and last in before)
            if last is not None:
                before.add(last)
        rows.append(row)
    return torch.tensor(rows)


def by_context(bits_WN: Tensor, windows: Tensor) -> dict[str, float]:
    """The mean after contexts that stood earlier in the window, where a model can copy; and others.

    The keys are `SEEN` and `NEW`, without those that no token has.
    """
    seen_WN = continues_seen(windows)
    chosen = {SEEN: seen_WN, NEW: ~seen_WN}
    return {name: bits_WN[of].mean().item() for name, of in chosen.items() if of.any()}


def by_part(bits_WN: Tensor, parts: int = PARTS) -> list[float]:
    """The mean of each part of the window, from its beginning to its end."""
    return [part.mean().item() for part in bits_WN.mean(0).tensor_split(parts)]
