"""The language-modelling part of a comparison: trains one arm and seed on text, and tests it.

The rows are the loss of every training step; bits per byte of held-out text, during training and,
at the training length and beyond it, at the end; and, for the first seed, the recorder's statistics
and a text that the trained model generates.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from sigmoid_attention.lab.rows import SOFTMAX, ArmRow
from sigmoid_attention.lab.store import Store, step_parts
from sigmoid_attention.nn.models import DecoderLM, ModelConfig, generate
from sigmoid_attention.studies.compare.settings import FIRST_SEED, TextSetting
from sigmoid_attention.studies.compare.summary import COURSE, LOSS
from sigmoid_attention.training import code_lengths
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.recorder import Recorder, read_records
from sigmoid_attention.training.text_run import TextRun
from sigmoid_attention.training.trainer import TrainConfig

# The bytes, one per row, of a text that a trained model generated, and of its prompt.
WRITTEN, PROMPT = "sample_text", "sample_prompt"
LONGEST_PROMPT, LONGEST_TEXT = 64, 256
TEMPERATURE, TOP_P = 0.8, 0.95

# A row's metric, by the recorder's quantity and statistic. Its steps count from 0, the
# initialisation, because the recorder measures before the step's update.
RECORDED = {
    ("attention_output", "rms"): ("attention_output_norm", "rms"),
    ("attention_weights", "row_mass_mean"): ("attention_mass", "weight"),
    ("attention_weights", "max_abs"): ("largest_weight", "weight"),
    ("residual_stream", "rms"): ("residual_norm", "rms"),
    ("gradient_norm", "value"): ("gradient_norm", "norm"),
}


def spread(documents: Sequence[Document], piece: int, most: int) -> list[Document]:
    """Evenly spaced pieces of `piece` bytes from the documents, about `most` bytes together.

    The even spacing brings their mean near that of all documents. The last piece of a document may
    be shorter.

    Example:
        >>> [piece.text for piece in spread([Document("a", b"one two six ten")], 4, most=8)]
        [b'one ', b'six ']
    """
    pieces = [
        Document(document.name, document.text[start : start + piece])
        for document in documents
        for start in range(0, len(document.text), piece)
    ]
    return pieces[:: math.ceil(len(pieces) * piece / most)]


def arm_config(config: ModelConfig, arm: str) -> ModelConfig:
    """The arm's configuration; the configurations differ only in the activation."""
    return config.as_softmax() if arm == SOFTMAX else config


def run_text(
    setting: TextSetting,
    text: Text,
    arm: str,
    seed: int,
    folder: Path,
    device: torch.device,
    store: Store,
    progress: Callable[[float], None],
) -> Iterator[ArmRow]:
    """Train (or continue, if `folder` has a checkpoint), test, and yield the rows.
    `progress` is called with the finished share of the training. Raises ``Diverged``.
    """
    name = f"text-{arm}-seed{seed}"
    tests = step_parts(name, setting.steps, setting.test_every)
    store.refuse_gaps(folder, tests, setting.test_every)
    config = TrainConfig(
        steps=setting.steps,
        lr=setting.peak_rate(arm),
        warmup_steps=setting.warmup_steps,
        seed=seed,
        checkpoint_every=setting.checkpoint_every,
        device=str(device),
    )
    model = arm_config(setting.model, arm)
    run = TextRun.prepare(text, model, config, batch_size=setting.batch_size, folder=folder)
    n = run.seq_len
    records = folder / "records"
    # With its end-of-document token, a piece has as many bytes as a sequence has tokens.
    pieces = spread(text.heldout, n - 1, setting.test_bytes)

    def tested(step: int) -> ArmRow:
        return ArmRow(arm, COURSE, run.bits_per_byte(pieces), "bits/byte", seed, step, length=n)

    result = run.train(
        resume=True,
        recorder=(
            Recorder(records, setting.record_every, whole=True) if seed == FIRST_SEED else None
        ),
        progress=False,
        on_step=on_the_way(store, name, setting.steps, setting.test_every, tested, progress),
    )
    for step, loss in enumerate(result.losses, 1):
        yield ArmRow(arm, "train_loss", loss * text.bits_per_nat, "bits/byte", seed, step=step)
    yield tested(setting.steps)
    for times in setting.times:
        length = times * n
        bits = run.bits_per_byte(seq_len=length)
        yield ArmRow(arm, LOSS, bits, "bits/byte", seed, length=length)
    yield from _by_context(run, arm, seed)
    yield ArmRow(arm, "parameters", run.parameters, "parameters", seed)
    if seed == FIRST_SEED:
        yield from _recorded(records, arm)
        yield from _generated(run.model, text, arm, n, device)


def _by_context(run: TextRun, arm: str, seed: int) -> Iterator[ArmRow]:
    """The loss after contexts that stood in the window before, where a model can copy; and others.

    A token is the unit here: with a tokenizer of several bytes these are no bits per byte.
    """
    windows = code_lengths.whole_windows(run.text.tokenizer, run.text.heldout, run.seq_len)
    if not len(windows):
        return
    bits_WN = code_lengths.bits_of_targets(run.model, windows)
    for metric, value in code_lengths.by_context(bits_WN, windows).items():
        yield ArmRow(arm, metric, value, "bits/token", seed, length=run.seq_len)


def on_the_way(
    store: Store,
    name: str,
    steps: int,
    every: int,
    tested: Callable[[int], ArmRow],
    progress: Callable[[float], None],
) -> Callable[[int, float], None]:
    """The trainer's `on_step`: test every `every` steps except the last, and report the progress.

    The row of a test is stored at once, because a run continued from its checkpoint does not repeat
    earlier tests.
    """

    def on_step(done: int, _loss: float) -> None:
        if done % every == 0 and done < steps:
            part = f"{name}-step{done:06d}"
            if not store.has(part):
                store.put(part, [tested(done)])
        progress(done / steps)

    return on_step


def _generated(
    model: DecoderLM, text: Text, arm: str, n: int, device: torch.device
) -> Iterator[ArmRow]:
    """The beginning of the held-out text, and the bytes that the model generates after it."""
    prompt = text.prompt(min(LONGEST_PROMPT, n // 4))
    ids = torch.tensor([text.tokenizer.encode(prompt)])
    longest = min(n, ids.shape[1] + LONGEST_TEXT)
    tokens = generate(
        model,
        ids.to(device),
        max_new_tokens=longest - ids.shape[1],
        temperature=TEMPERATURE,
        top_p=TOP_P,
        # The same for both arms.
        generator=torch.Generator(device).manual_seed(FIRST_SEED),
        stop_token=text.tokenizer.eos,
    )
    written = text.tokenizer.decode(tokens[0, ids.shape[1] :].tolist())
    for metric, content in ((PROMPT, prompt), (WRITTEN, written)):
        for position, byte in enumerate(content):
            yield ArmRow(arm, metric, byte, "byte", FIRST_SEED, step=position)


def _recorded(records: Path, arm: str) -> Iterator[ArmRow]:
    for record in read_records(records).to_pylist():
        names = RECORDED.get((record["quantity"], record["statistic"]))
        if names:
            metric, unit = names
            yield ArmRow(
                arm,
                metric,
                record["value"],
                unit,
                FIRST_SEED,
                step=record["step"],
                layer=record["layer"],
            )
