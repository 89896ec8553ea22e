"""Trains the candidates of the recipe study in parallel processes, and stores what they reach.

A folder continues where it ended: a finished run has its rows, an unfinished one its checkpoint.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from sigmoid_attention.lab.pool import process_pool
from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.compare.text import RECORDED, spread
from sigmoid_attention.studies.recipe import measure, mechanism
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.environment import (
    describe_machine,
    describe_versions,
    usable_cores,
)
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.progress import SweepProgress
from sigmoid_attention.training.recorder import Recorder, read_records
from sigmoid_attention.training.text_run import TextRun
from sigmoid_attention.training.trainer import Diverged, TrainConfig

LOSS = "validation_bits_per_byte"
# The same where no head sees more tokens than in training.
WINDOWED = "validation_bits_per_byte_windowed"
# The same where only the heads without slopes are held to that.
ROTATING = "validation_bits_per_byte_windowed_without_slopes"
# The same on the beginnings of all held-out files, as the trials before this study measured it.
BEGINNINGS = "validation_bits_per_byte_beginnings"
COURSE = "validation_course"
# During training, the largest of each layer's heads: the share of the weights on the token to copy;
# and their mean: the share of the logits' variance in the rows' means, before and after centring.
PREFIX, COMMON, CENTRED = "prefix_matching", "common_share", "common_share_centred"
SEEN, NEW, PART = "bits_after_seen", "bits_after_new", "bits_by_part"
DIVERGED = "diverged"


class Unit(NamedTuple):
    """One training run."""

    candidate: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.candidate}-lr{self.lr:g}-seed{self.seed}"

    @property
    def arm(self) -> str:
        """The ``arm`` of its rows."""
        return f"{self.candidate} @ {self.lr:g}"


def units(setting: RecipeSetting) -> Iterator[Unit]:
    """Every run; seeds are the outer loop, so that an interrupted study has complete replicates."""
    for seed in setting.seeds:
        for lr in setting.learning_rates:
            for candidate in setting.candidates:
                yield Unit(candidate, lr, seed)


def run(
    out: Path,
    setting: RecipeSetting,
    *,
    resume: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> Store:
    """Train every candidate without rows in ``out``, in ``workers`` processes of one thread.

    Raises:
        ValueError: the data cannot be used, or ``out`` holds something that this setting cannot
            continue; then nothing is overwritten.
        OSError: a file could not be written.
    """
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    text = _text(setting)
    text.check_lengths(setting.seq_len, max(setting.times) * setting.seq_len)
    stamp = {
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "provenance": dataclasses.asdict(text.corpus.provenance),
    }
    # These only select runs, so more can be added to a study.
    fixed = dataclasses.asdict(setting)
    for name in ("seeds", "learning_rates", "candidates"):
        del fixed[name]
    store = Store(out, fixed, stamp, resume=resume)
    missing = [unit for unit in units(setting) if not store.has(unit.name)]
    console = console or Console(quiet=True)
    if missing:
        with (
            process_pool(min(workers, len(missing))) as pool,
            SweepProgress(len(missing), len(missing), console) as progress,
        ):
            waiting = {
                pool.submit(train_unit, setting, unit, store.run_folder(unit.name)): unit
                for unit in missing
            }
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    unit = waiting.pop(future)
                    store.put(unit.name, future.result())
                    shutil.rmtree(store.run_folder(unit.name), ignore_errors=True)
                    progress.finish(unit.name, 1.0)
    store.merge()
    return store


@cache
def _text(setting: RecipeSetting) -> Text:
    corpus = load_corpus(setting.source)
    return Text.prepare(corpus, ByteTokenizer.vocab_size, setting.heldout_bytes)


def train_unit(setting: RecipeSetting, unit: Unit, folder: Path) -> list[ArmRow]:
    """Train one model, or continue it from the checkpoint in ``folder``; its rows."""
    text = _text(setting)
    candidate = CANDIDATES[unit.candidate]
    settings = {"weight_decay": setting.weight_decay, **candidate.training}
    config = TrainConfig(
        steps=setting.steps,
        lr=unit.lr,
        warmup_steps=setting.warmup_steps,
        seed=unit.seed,
        checkpoint_every=setting.test_every,
        **settings,
    )
    model = candidate.config(vocab_size=ByteTokenizer.vocab_size, **setting.sizes)
    prepared = TextRun.prepare(text, model, config, batch_size=setting.batch_size, folder=folder)
    for layer in mechanism.attention_layers(prepared.model):
        for part in candidate.parts:
            part(layer)
    records = Recorder(folder / "records", setting.record_every, whole=True)
    tests = Store(folder / "tests", {}, {}, resume=True)
    pieces = spread(text.heldout, setting.seq_len - 1, setting.heldout_bytes // 8)

    def on_step(done: int, _loss: float) -> None:
        name = f"step{done:06d}"
        if done % setting.test_every == 0 and done < setting.steps and not tests.has(name):
            bits = prepared.bits_per_byte(pieces)
            row = ArmRow(
                unit.arm, COURSE, bits, "bits/byte", unit.seed, done, length=setting.seq_len
            )
            tests.put(name, [row, *_mechanism(prepared, setting, unit, done)])

    try:
        result = prepared.train(resume=True, recorder=records, progress=False, on_step=on_step)
    except Diverged:
        return [ArmRow(unit.arm, DIVERGED, 1.0, "runs", unit.seed)]
    columns = [field.name for field in dataclasses.fields(ArmRow)]
    course = tests.rows().select(columns).to_pylist()
    return [
        *(ArmRow(**row) for row in course),
        *_mechanism(prepared, setting, unit, setting.steps),
        *_losses(prepared, setting, unit),
        *_recorded(folder / "records", unit),
        *_strengths(prepared, unit),
        ArmRow(
            unit.arm, "train_loss", result.losses[-1] * text.bits_per_nat, "bits/byte", unit.seed
        ),
        ArmRow(unit.arm, "seconds", result.seconds, "seconds", unit.seed),
        ArmRow(unit.arm, "parameters", prepared.parameters, "parameters", unit.seed),
    ]


def _mechanism(
    prepared: TextRun, setting: RecipeSetting, unit: Unit, done: int
) -> Iterator[ArmRow]:
    model, text = prepared.model, prepared.text
    windows = measure.whole_windows(text.tokenizer, text.heldout, setting.seq_len)
    tokens_BN = windows[:: max(1, len(windows) // 4)][:4, :-1]
    for layer, scores in enumerate(mechanism.prefix_matching(model)):
        value = scores.max().item()
        yield ArmRow(unit.arm, PREFIX, value, "share", unit.seed, done, layer=layer)
    for layer, shares in enumerate(mechanism.common_shares(model, tokens_BN)):
        for metric, share in zip((COMMON, CENTRED), shares, strict=True):
            value = share.mean().item()
            yield ArmRow(unit.arm, metric, value, "share", unit.seed, done, layer=layer)


def _losses(prepared: TextRun, setting: RecipeSetting, unit: Unit) -> Iterator[ArmRow]:
    n = setting.seq_len
    for times in setting.times:
        length = times * n
        bits = prepared.bits_per_byte(seq_len=length)
        yield ArmRow(unit.arm, LOSS, bits, "bits/byte", unit.seed, length=length)
        with measure.at_most_seen(prepared.model, n):
            bits = prepared.bits_per_byte(seq_len=length)
        yield ArmRow(unit.arm, WINDOWED, bits, "bits/byte", unit.seed, length=length)
        with measure.rotating_at_most_seen(prepared.model, n):
            bits = prepared.bits_per_byte(seq_len=length)
        yield ArmRow(unit.arm, ROTATING, bits, "bits/byte", unit.seed, length=length)
        bits = bits_per_byte(
            prepared.model,
            prepared.text.tokenizer,
            prepared.text.corpus.heldout,
            length,
            max_bytes=setting.heldout_bytes,
        )
        yield ArmRow(unit.arm, BEGINNINGS, bits, "bits/byte", unit.seed, length=length)
    text = prepared.text
    windows = measure.whole_windows(text.tokenizer, text.heldout, n)
    bits_WN = measure.bits_of_targets(prepared.model, windows)
    seen_WN = measure.continues_seen(windows)
    for metric, chosen in ((SEEN, seen_WN), (NEW, ~seen_WN)):
        if not chosen.any():
            continue
        value = bits_WN[chosen].mean().item()
        yield ArmRow(unit.arm, metric, value, "bits/byte", unit.seed, length=n)
    for part, value in enumerate(measure.by_part(bits_WN)):
        yield ArmRow(unit.arm, PART, value, "bits/byte", unit.seed, step=part, length=n)


def _recorded(folder: Path, unit: Unit) -> Iterator[ArmRow]:
    for record in read_records(folder).to_pylist():
        names = RECORDED.get((record["quantity"], record["statistic"]))
        if names:
            metric, kind = names
            yield ArmRow(
                unit.arm,
                metric,
                record["value"],
                kind,
                unit.seed,
                step=record["step"],
                layer=record["layer"],
            )


def _strengths(prepared: TextRun, unit: Unit) -> Iterator[ArmRow]:
    """The trained numbers of each head: ``step`` is the head."""
    for number, layer in enumerate(mechanism.attention_layers(prepared.model)):
        for name, parameter in layer.named_parameters():
            if parameter.shape == (layer.num_heads,):
                for head, value in enumerate(parameter.tolist()):
                    yield ArmRow(
                        unit.arm,
                        f"trained_{name.rpartition('.')[2]}",
                        value,
                        "number",
                        unit.seed,
                        step=head,
                        layer=number,
                    )
