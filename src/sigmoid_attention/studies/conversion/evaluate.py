"""Measures a parent model and its conversion: before, during and after the training.

Rule: there is no verdict. Each quantity of the converted model is shown with the same quantity of
the parent, on the same held-out text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sigmoid_attention.integrations.conversion import next_token_loss, relative_error
from sigmoid_attention.studies.conversion import needle, similarity
from sigmoid_attention.studies.conversion.parents import Parent
from sigmoid_attention.studies.conversion.text import TokenSequences

NEEDLES = 8


@dataclass
class Evaluation:
    """Evaluates models on held-out text, needles or pairs of texts, against the parent.

    A causal model: ``loss`` in nats per token on held-out sequences, and for haystacks of N tokens
    ``needle_N`` (share of numbers found) and ``needle_loss_N``. An encoder: ``hidden_error``, the
    relative error of its last hidden states against the parent's on held-out sequences, and a
    Spearman correlation for each collection of pairs.

    Raises ``ValueError`` if the held-out text is too short for the needles.
    """

    parent: Parent
    text: TokenSequences
    sequences: int
    lengths: Sequence[int]
    device: torch.device

    def __post_init__(self) -> None:
        lengths = self.lengths if self.parent.causal else ()
        self._haystacks = {
            length: needle.haystacks(
                self.parent, self.text.heldout, length, NEEDLES, self.text.source
            )
            for length in lengths
        }

    @cached_property
    def _batches(self) -> list[dict[str, Tensor]]:
        batches = self.text.heldout_batches(self.sequences)
        return [{name: ids.to(self.device) for name, ids in batch.items()} for batch in batches]

    @cached_property
    def _parents_hidden(self) -> list[Tensor]:
        with torch.no_grad():
            return [self.parent.model(**batch).last_hidden_state for batch in self._batches]

    def quick(self, model: PreTrainedModel) -> dict[str, float]:
        """The measurements at every point of the curve."""
        if self.parent.causal:
            return {"loss": self._loss(model)}
        results = {"hidden_error": self._hidden_error(model)}
        for pairs in similarity.human_pairs():
            results[pairs.name] = similarity.correlation(model, self.parent.tokenizer, pairs)
        return results

    def thorough(self, model: PreTrainedModel) -> dict[str, float]:
        """All measurements, for the parent and for the final model."""
        results = self.quick(model)
        for length, texts in self._haystacks.items():
            share, loss = needle.needle_scores(model, texts)
            results[f"needle_{length}"], results[f"needle_loss_{length}"] = share, loss
        return results

    @torch.no_grad()
    def _loss(self, model: PreTrainedModel) -> float:
        total = count = 0.0
        for batch in self._batches:
            ids_BN = batch["input_ids"]
            loss = next_token_loss(model(**batch, use_cache=False).logits, ids_BN)
            total += float(loss) * ids_BN[:, 1:].numel()
            count += ids_BN[:, 1:].numel()
        return total / count

    @torch.no_grad()
    def _hidden_error(self, model: PreTrainedModel) -> float:
        errors = [
            float(relative_error(model(**batch).last_hidden_state, hidden))
            for batch, hidden in zip(self._batches, self._parents_hidden, strict=True)
        ]
        return math.fsum(errors) / len(errors)
