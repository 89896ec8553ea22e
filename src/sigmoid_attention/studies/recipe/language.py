"""Trains one candidate of the recipe study on text, and measures what it reaches."""

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.studies.compare.text import RECORDED, spread
from sigmoid_attention.studies.recipe import measure, mechanism
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.studies.recipe.unit import (
    BEGINNINGS,
    CENTRED,
    COMMON,
    COPYING,
    COURSE,
    DIVERGED,
    LOSS,
    NORMALISER,
    PART,
    PREFIX,
    ROTATING,
    WINDOWED,
    Unit,
    while_training,
)
from sigmoid_attention.training import code_lengths
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.recorder import Recorder, read_records
from sigmoid_attention.training.text_run import TextRun
from sigmoid_attention.training.trainer import Diverged


@cache
def _text(setting: RecipeSetting) -> Text:
    corpus = load_corpus(setting.source)
    return Text.prepare(corpus, ByteTokenizer.vocab_size, setting.heldout_bytes)


def provenance(setting: RecipeSetting) -> dict[str, Any]:
    """Where the text is from. Raises ``ValueError`` if it cannot be used or is too short."""
    text = _text(setting)
    text.check_lengths(setting.seq_len, max(setting.times) * setting.seq_len)
    return dataclasses.asdict(text.corpus.provenance)


def train_unit(setting: RecipeSetting, unit: Unit, folder: Path) -> list[ArmRow]:
    """Train one model, or continue it from the checkpoint in ``folder``; its rows."""
    text = _text(setting)
    candidate, config = CANDIDATES[unit.candidate], unit.training(setting)
    model = candidate.config(vocab_size=ByteTokenizer.vocab_size, **setting.sizes)
    prepared = TextRun.prepare(text, model, config, batch_size=setting.batch_size, folder=folder)
    candidate.change(prepared.model)
    records = Recorder(folder / "records", setting.record_every, whole=True)
    tests = Store(folder / "tests", {}, {}, resume=True)
    pieces = spread(text.heldout, setting.seq_len - 1, setting.heldout_bytes // 8)
    # Windows of the training length, each with the target of its last token.
    windows = code_lengths.whole_windows(text.tokenizer, text.heldout, setting.seq_len)

    def tested(done: int) -> Iterator[ArmRow]:
        bits, n = prepared.bits_per_byte(pieces), setting.seq_len
        yield ArmRow(unit.arm, COURSE, bits, "bits/byte", unit.seed, done, length=n)
        yield from _mechanism(prepared.model, windows[:, :-1], unit, done)

    on_step = while_training(setting, tests, tested)
    try:
        result = prepared.train(resume=True, recorder=records, progress=False, on_step=on_step)
    except Diverged:
        return [ArmRow(unit.arm, DIVERGED, 1.0, "runs", unit.seed)]
    return [
        *(ArmRow.of(row) for row in tests.rows().to_pylist()),
        *_mechanism(prepared.model, windows[:, :-1], unit, setting.steps),
        *_normaliser(prepared.model, windows[:, :-1], unit),
        *_losses(prepared, setting, unit),
        *_places(prepared.model, windows, unit),
        *_recorded(folder / "records", unit),
        *_strengths(prepared, unit),
        ArmRow(
            unit.arm, "train_loss", result.losses[-1] * text.bits_per_nat, "bits/byte", unit.seed
        ),
        ArmRow(unit.arm, "seconds", result.seconds, "seconds", unit.seed),
        ArmRow(unit.arm, "parameters", prepared.parameters, "parameters", unit.seed),
    ]


def _mechanism(model: DecoderLM, windows_WN: Tensor, unit: Unit, done: int) -> Iterator[ArmRow]:
    repeated = mechanism.repeated(windows_WN.flatten(), windows_WN.shape[1])
    gain = mechanism.copying_gain(model, repeated)
    yield ArmRow(unit.arm, COPYING, gain, "bits", unit.seed, done)
    for layer, scores in enumerate(mechanism.prefix_matching(model, repeated)):
        value = scores.max().item()
        yield ArmRow(unit.arm, PREFIX, value, "share", unit.seed, done, layer=layer)
    for layer, shares in enumerate(mechanism.common_shares(model, _few(windows_WN))):
        for metric, share in zip((COMMON, CENTRED), shares, strict=True):
            value = share.mean().item()
            yield ArmRow(unit.arm, metric, value, "share", unit.seed, done, layer=layer)


def _normaliser(model: DecoderLM, windows_WN: Tensor, unit: Unit) -> Iterator[ArmRow]:
    """What is left of the normaliser, by the number of cumulants: ``step`` is this number."""
    for layer, errors in enumerate(mechanism.normaliser_errors(model, _few(windows_WN))):
        for order, error_H in enumerate(errors):
            value = error_H.mean().item()
            yield ArmRow(unit.arm, NORMALISER, value, "nats", unit.seed, order, layer=layer)


def _few(windows_WN: Tensor) -> Tensor:
    """Four windows from all of the text."""
    return windows_WN[:: max(1, len(windows_WN) // 4)][:4]


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


def _places(model: DecoderLM, windows: Tensor, unit: Unit) -> Iterator[ArmRow]:
    """The losses by context and by part of the window: ``step`` is the part."""
    n = windows.shape[1] - 1
    bits_WN = code_lengths.bits_of_targets(model, windows)
    for metric, value in code_lengths.by_context(bits_WN, windows).items():
        yield ArmRow(unit.arm, metric, value, "bits/byte", unit.seed, length=n)
    for part, value in enumerate(code_lengths.by_part(bits_WN)):
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
    for number, layer in enumerate(measure.attention_layers(prepared.model)):
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
