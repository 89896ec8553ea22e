"""Trains one language model on a text, saves it in a folder, and tests it on held-out text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.training.data.batches import TextBatches
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.model_folder import CONFIG, describe_run, new_model, read_run
from sigmoid_attention.training.recorder import Recorder
from sigmoid_attention.training.trainer import TrainConfig, TrainResult, train


@dataclass(frozen=True)
class TextRun:
    """A decoder, its training batches, and the folder that it is saved in (None saves nothing).

    Example:
        >>> from sigmoid_attention.nn.models import PRESETS
        >>> from sigmoid_attention.training.data.corpus import Corpus
        >>> documents = [Document("a", b"lorem ipsum " * 99)], [Document("b", b"sit " * 30)]
        >>> corpus = Corpus(*documents, provenance=None)
        >>> text = Text.prepare(corpus, vocab_size=257, heldout_bytes=100)
        >>> run = TextRun.prepare(text, PRESETS["tiny"], TrainConfig(steps=2), batch_size=2)
        >>> run.train(progress=False).steps, 5 < run.bits_per_byte() < 10
        (2, True)
    """

    text: Text
    model: DecoderLM
    batches: TextBatches
    config: TrainConfig
    folder: Path | None

    @classmethod
    def prepare(
        cls,
        text: Text,
        model: ModelConfig,
        config: TrainConfig,
        *,
        batch_size: int,
        folder: Path | None = None,
    ) -> "TextRun":
        """Make the model and its batches from `config.seed`, and describe the run in `folder`.

        The description is a config.json and a tokenizer.json, which `load_trained` reads.

        Raises:
            OSError: the folder cannot be written.
        """
        batches = TextBatches(text.tokens, model.max_seq_len, batch_size, config.seed)
        run = cls(text, new_model(model, config.seed), batches, config, folder)
        run._describe()
        return run

    @property
    def seq_len(self) -> int:
        return self.model.config.max_seq_len

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train(
        self,
        *,
        resume: bool = False,
        recorder: Recorder | None = None,
        progress: bool = True,
        on_step: Callable[[int, float], None] | None = None,
    ) -> TrainResult:
        """Train, or continue from the folder's checkpoint; raises what `trainer.train` raises."""
        return train(
            self.model,
            self.batches,
            self.config,
            out=self.folder,
            resume=resume,
            recorder=recorder,
            progress=progress,
            bits_per_nat=self.text.bits_per_nat,
            on_step=on_step,
        )

    def record_more_steps(self) -> None:
        """Rewrite the description if the run continues with another number of steps.

        Call this after the first step: only then has the trainer accepted the checkpoint.
        """
        assert self.folder is not None
        if read_run(self.folder / CONFIG)["train"]["steps"] != self.config.steps:
            self._describe(again=True)

    def bits_per_byte(
        self, documents: Sequence[Document] | None = None, seq_len: int | None = None
    ) -> float:
        """Bits per byte of `documents`; default: the held-out text, at the training length."""
        documents = self.text.heldout if documents is None else documents
        device = torch.device(self.config.device)
        return bits_per_byte(
            self.model, self.text.tokenizer, documents, seq_len or self.seq_len, device
        )

    def _describe(self, *, again: bool = False) -> None:
        if self.folder is not None:
            describe_run(
                self.folder,
                self.model,
                self.batches,
                self.config,
                self.text.tokenizer,
                self.text.corpus.provenance,
                again=again,
            )
