"""Multi-query associative recall: read key-value pairs, then predict the value of each query key.

Shapes: B sequences, P pairs, N tokens a sequence.
"""

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.nn.sizes import instance
from sigmoid_attention.training.seeds import step_generator

FILLER = 0


@dataclass(frozen=True)
class MultiQueryRecall:
    """Sequences k1 v1 ... kP vP, filler, then every key again in random order with its value.

    Only the values of the second part are scored. Token 0 is the filler, the lower half of the
    rest are keys (distinct within a sequence), the upper half values (drawn with replacement).
    Guessing a value has accuracy 1 / `values`. `batch(step)` gives inputs and targets, each
    (batch_size, seq_len) int64.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: the sequence is too short for the pairs, or there are fewer keys than pairs.

    Source: multi-query associative recall of Arora et al. 2023 (Zoology, arXiv 2312.04927).

    Example:
        >>> task = MultiQueryRecall(seq_len=15, batch_size=2, pairs=4, vocab_size=33, seed=0)
        >>> inputs, targets = task.batch(0)
        >>> int((targets != -100).sum())
        8
    """

    seq_len: int
    batch_size: int
    pairs: int
    vocab_size: int
    seed: int

    def __post_init__(self) -> None:
        for name, number in asdict(self).items():
            instance(name, number, Integral, "a whole number")
        if self.batch_size < 1 or self.pairs < 1:
            raise ValueError(
                f"batch_size and pairs must be at least 1, got {self.batch_size} and {self.pairs}"
            )
        if self.seq_len < 4 * self.pairs - 1:
            raise ValueError(
                f"seq_len must be at least 4*pairs - 1 = {4 * self.pairs - 1} for {self.pairs} "
                f"pairs and as many queries, got {self.seq_len}"
            )
        if self.keys < self.pairs:
            raise ValueError(
                f"vocab_size must be at least 2*pairs + 1 = {2 * self.pairs + 1}, so that the keys "
                f"of one sequence differ, got {self.vocab_size}"
            )

    @property
    def keys(self) -> int:
        """The number of keys, which are the tokens 1 to `keys`."""
        return (self.vocab_size - 1) // 2

    @property
    def values(self) -> int:
        """The number of values, which are the tokens `keys` + 1 to `vocab_size` - 1."""
        return self.vocab_size - 1 - self.keys

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Training inputs and targets of `step`."""
        return self._draw(step_generator(self.seed, step))

    def heldout(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """`count` held-out batches, whose seeds no training batch uses."""
        return [self._draw(step_generator(self.seed, k, heldout=True)) for k in range(count)]

    def describe(self) -> dict[str, Any]:
        return {"kind": "multi-query recall", **asdict(self)}

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        B, P = self.batch_size, self.pairs
        keys_BP = 1 + _shuffled(B, self.keys, generator)[:, :P]
        values_BP = torch.randint(
            1 + self.keys, self.vocab_size, (B, P), generator=generator, dtype=torch.int64
        )
        order_BP = _shuffled(B, P, generator)
        asked_BP, answers_BP = keys_BP.gather(1, order_BP), values_BP.gather(1, order_BP)

        filler = torch.full((B, self.seq_len + 1 - 4 * P), FILLER)
        tokens = torch.cat(
            [_interleave(keys_BP, values_BP), filler, _interleave(asked_BP, answers_BP)], 1
        )
        targets = torch.full_like(tokens, -100)
        targets[:, -2 * P + 1 :: 2] = answers_BP
        return tokens[:, :-1], targets[:, 1:]


def _shuffled(rows: int, size: int, generator: torch.Generator) -> Tensor:
    """A random permutation of 0 to ``size`` - 1 in every row, as the argsort of noise."""
    noise = torch.rand(rows, size, generator=generator, dtype=torch.float32)
    return noise.argsort(1)


def _interleave(first_BP: Tensor, second_BP: Tensor) -> Tensor:
    return torch.stack([first_BP, second_BP], 2).flatten(1)
