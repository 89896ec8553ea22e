"""The copying task: read a random string and a separator, then repeat the string.

Shapes: B sequences, L symbols in the string, N = 2L tokens a sequence.
"""

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.nn.sizes import instance
from sigmoid_attention.training.seeds import step_generator

SEPARATOR = 0


@dataclass(frozen=True)
class Copying:
    """Sequences s1 ... sL, separator, s1 ... sL with L = seq_len / 2; only the copy is scored.

    Token 0 is the separator, every other token a symbol. Guessing has accuracy
    1 / (`vocab_size` - 1). `batch(step)` gives inputs and targets, (batch_size, seq_len) int64.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: `seq_len` is odd or below 2, or there are fewer than two symbols.

    Example:
        >>> inputs, targets = Copying(seq_len=6, batch_size=1, vocab_size=9, seed=0).batch(0)
        >>> bool((targets[0, 3:] == inputs[0, :3]).all()), targets[0, :3].tolist()
        (True, [-100, -100, -100])
    """

    seq_len: int
    batch_size: int
    vocab_size: int
    seed: int

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            instance(name, number, Integral, "a whole number")
        if self.seq_len < 2 or self.seq_len % 2:
            raise ValueError(f"seq_len must be even and at least 2, got {self.seq_len}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.vocab_size < 3:
            raise ValueError(
                f"vocab_size must be at least 3 (the separator and two symbols), "
                f"got {self.vocab_size}"
            )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training inputs and targets of `step`."""
        return self._draw(step_generator(self.seed, step))

    def heldout(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """`count` held-out batches, whose seeds no training batch uses."""
        return [self._draw(step_generator(self.seed, k, heldout=True)) for k in range(count)]

    def describe(self) -> dict[str, Any]:
        return {"kind": "copying", **asdict(self)}

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        B, L = self.batch_size, self.seq_len // 2
        string_BL = torch.randint(1, self.vocab_size, (B, L), generator=generator)
        separator_B1 = torch.full((B, 1), SEPARATOR)
        tokens = torch.cat([string_BL, separator_B1, string_BL], 1)
        targets = tokens.clone()
        targets[:, : L + 1] = -100
        return tokens[:, :-1], targets[:, 1:]
