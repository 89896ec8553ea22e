"""The comparison's language-modelling part: one arm and seed trained on text, then tested.

Gives the loss of every training step, bits per byte on held-out text at the training length and
beyond it, and, for the first seed, what the recorder saw inside the network.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from sigmoid_attention.nn.models import ModelConfig
from sigmoid_attention.studies.results import SOFTMAX
from sigmoid_attention.studies.setting import FIRST_SEED, TextSetting
from sigmoid_attention.studies.store import Row
from sigmoid_attention.studies.trained import describe_run, new_model, tokenizer_for
from sigmoid_attention.training.data.batches import TextBatches, token_stream
from sigmoid_attention.training.data.corpus import Corpus, Document
from sigmoid_attention.training.data.tokenizer import Tokenizer
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.recorder import Recorder, read_records
from sigmoid_attention.training.trainer import TrainConfig, train

# A row's metric, by the recorder's quantity and statistic; its steps count from 0, the
# initialisation, because the recorder looks before the step's update.
RECORDED = {
    ("attention_output", "rms"): ("attention_output_norm", "rms"),
    ("attention_weights", "row_mass_mean"): ("attention_mass", "weight"),
    ("attention_weights", "max_abs"): ("largest_weight", "weight"),
    ("residual_stream", "rms"): ("residual_norm", "rms"),
    ("gradient_norm", "value"): ("gradient_norm", "norm"),
}


@dataclass(frozen=True)
class Text:
    """A corpus with its tokenizer, its training part as tokens, and what is tested on."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: Tensor
    heldout: list[Document]

    @classmethod
    def prepare(cls, corpus: Corpus, vocab_size: int, heldout_bytes: int) -> "Text":
        """Tokenize a corpus for a vocabulary of `vocab_size`, and choose what to test on."""
        tokenizer = tokenizer_for(vocab_size, corpus)
        tokens = token_stream(tokenizer, corpus.train)
        return cls(corpus, tokenizer, tokens, sample(corpus.heldout, heldout_bytes))

    def check_lengths(self, training: int, longest: int) -> None:
        """Raise ``ValueError``, before any training, if a part is shorter than one sequence.

        `training` is the length in tokens that is trained at, `longest` the longest tested.
        """
        TextBatches(self.tokens, training, batch_size=1, seed=0)
        held_out = len(token_stream(self.tokenizer, self.heldout))
        if held_out < longest + 1:
            raise ValueError(
                f"the held-out part of the corpus has {held_out} tokens, which is shorter than one "
                f"sequence of {longest} and the token after it"
            )


def sample(documents: Sequence[Document], most: int) -> list[Document]:
    """Documents with at most `most` bytes together, the last of them cut short.

    In the order of their names' hashes: that is neither the alphabet's nor chance, and whole
    documents are read where the heads of all would be a text of nothing but beginnings.

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


def arm_config(config: ModelConfig, arm: str) -> ModelConfig:
    """The arm's own configuration: nothing but the activation differs."""
    return config.as_softmax() if arm == SOFTMAX else config


def run_text(
    setting: TextSetting,
    text: Text,
    arm: str,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: Callable[[float], None],
) -> Iterator[Row]:
    """Train (or go on training, if `folder` has a checkpoint), test, and give the rows.

    `progress` is told the share of the training that is done. Raises ``Diverged`` as the trainer.
    """
    config = TrainConfig(
        steps=setting.steps,
        lr=setting.lr,
        warmup_steps=setting.warmup_steps,
        seed=seed,
        checkpoint_every=setting.checkpoint_every,
        device=str(device),
    )
    model = new_model(arm_config(setting.model, arm), seed)
    batches = TextBatches(text.tokens, setting.model.max_seq_len, setting.batch_size, seed)
    describe_run(folder, model, batches, config, text.tokenizer, text.corpus.provenance)
    records = folder / "records"
    result = train(
        model,
        batches,
        config,
        out=folder,
        resume=True,
        recorder=(
            Recorder(records, setting.record_every, whole=True) if seed == FIRST_SEED else None
        ),
        progress=False,
        on_step=lambda done, _: progress(done / setting.steps),
    )
    for step, loss in enumerate(result.losses, 1):
        yield Row(arm, "train_loss", loss, "nats/token", seed, step=step)
    for times in setting.times:
        length = times * setting.model.max_seq_len
        bits = bits_per_byte(model, text.tokenizer, text.heldout, length, device)
        yield Row(arm, "validation_bits_per_byte", bits, "bits/byte", seed, length=length)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield Row(arm, "parameters", count, "parameters", seed)
    if seed == FIRST_SEED:
        yield from _recorded(records, arm)


def _recorded(records: Path, arm: str) -> Iterator[Row]:
    for record in read_records(records).to_pylist():
        found = RECORDED.get((record["quantity"], record["statistic"]))
        if found:
            metric, unit = found
            yield Row(
                arm,
                metric,
                record["value"],
                unit,
                FIRST_SEED,
                step=record["step"],
                layer=record["layer"],
            )
