"""Runs the routing study: trains and measures both arms of every pair and seed."""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from sigmoid_attention.lab.rows import ARMS, ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.routing.measure import (
    choices,
    churn,
    entropy,
    largest,
    loads,
    similarities,
)
from sigmoid_attention.studies.routing.setting import (
    FIRST_SEED,
    PAIRS,
    RoutingSetting,
    active_parameters,
    model_config,
)
from sigmoid_attention.training.data.batches import token_stream
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.environment import describe_machine, describe_versions
from sigmoid_attention.training.progress import StudyProgress
from sigmoid_attention.training.text_run import TextRun
from sigmoid_attention.training.trainer import Diverged, TrainConfig


def run(
    setting: RoutingSetting, out: Path, *, resume: bool = False, console: Console | None = None
) -> Store:
    """Train every arm without rows in ``out``, and merge the rows.

    Raises:
        ValueError: the data cannot be used, or ``out`` holds something that this setting cannot
            continue; then nothing is overwritten.
        OSError: a file could not be written.
        Diverged: a training run had a value that is not finite; a note names the run.
    """
    corpus = load_corpus(setting.data)
    text = Text.prepare(corpus, ByteTokenizer.vocab_size, setting.heldout_bytes)
    text.check_lengths(setting.seq_len, setting.seq_len)
    stamp = {
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "provenance": dataclasses.asdict(corpus.provenance),
    }
    # Seeds only select runs, so more can be added to a study.
    fixed = dataclasses.asdict(setting)
    del fixed["seeds"]
    identity = fixed | {
        "pairs": PAIRS,
        "text_sha256": corpus.provenance.sha256,
        "torch": torch.__version__,
    }
    store = Store(out, identity, stamp, resume=resume)
    console = console or Console(quiet=True)
    console.print(corpus.notice(), highlight=False, markup=False, soft_wrap=True)
    todo = [unit for unit in units(setting) if not store.has(unit_name(*unit))]
    work = {unit: float(_work(unit[0], setting)) for unit in todo}
    with StudyProgress(sum(work.values()), len(todo), console) as progress:
        for pair, arm, seed in todo:
            label = f"{pair}, {arm}, seed {seed}"
            progress.begin(label, work[pair, arm, seed])
            try:
                rows = list(run_unit(setting, text, pair, arm, seed, progress.advance))
            except Diverged as error:
                error.add_note(f"in the run: {label}")
                raise
            store.put(unit_name(pair, arm, seed), rows)
            progress.end()
    store.merge()
    return store


def units(setting: RoutingSetting) -> Iterator[tuple[str, str, int]]:
    """Pair, arm and seed of every run; seeds are the outer loop, so that pairs end early."""
    for seed in range(FIRST_SEED, FIRST_SEED + setting.seeds):
        for pair in PAIRS:
            for arm in ARMS:
                yield pair, arm, seed


def unit_name(pair: str, arm: str, seed: int) -> str:
    return f"{arm_name(pair, arm).replace(', ', '_').replace(' ', '_')}-seed{seed}"


def arm_name(pair: str, arm: str) -> str:
    """The ``arm`` of a row."""
    return f"{pair} {arm}"


def run_unit(
    setting: RoutingSetting,
    text: Text,
    pair: str,
    arm: str,
    seed: int,
    progress: Callable[[float], None],
) -> Iterator[ArmRow]:
    """Train one arm of one seed; yield its rows. `progress` is called with the finished share."""
    name = arm_name(pair, arm)
    config = model_config(pair, arm, setting)
    training = TrainConfig(
        steps=setting.steps, lr=setting.lr, warmup_steps=setting.warmup_steps, seed=seed
    )
    run = TextRun.prepare(text, config, training, batch_size=setting.batch_size)
    model = run.model
    probe_BN = _probe(text, setting)
    recorded: list[tuple[int, list[Tensor]]] = []

    def record_choices(done: int, _loss: float) -> None:
        progress(done / setting.steps)
        if done % setting.record_every == 0 or done == setting.steps:
            recorded.append((done, choices(model, probe_BN)))

    run.train(progress=False, on_step=record_choices)

    bits = run.bits_per_byte()
    yield ArmRow(name, "validation_bits_per_byte", bits, "bits/byte", seed, length=setting.seq_len)
    for layer, load_E in enumerate(loads(model, probe_BN)):
        yield ArmRow(name, "load_entropy", entropy(load_E), "fraction", seed, layer=layer)
        yield ArmRow(name, "largest_load", largest(load_E), "even loads", seed, layer=layer)
    for layer, cosine in enumerate(similarities(model, probe_BN)):
        yield ArmRow(name, "similarity", cosine, "cosine", seed, layer=layer)
    if config.moe is not None and config.moe.top_k is not None:
        for (_, before), (step, after) in pairwise(recorded):
            for layer, chosen in enumerate(zip(before, after, strict=True)):
                yield ArmRow(
                    name, "churn", churn(*chosen), "fraction", seed, step=step, layer=layer
                )
    yield ArmRow(name, "parameters", run.parameters, "parameters", seed)
    yield ArmRow(name, "active_parameters", active_parameters(config), "parameters", seed)


def _probe(text: Text, setting: RoutingSetting) -> Tensor:
    stream = token_stream(text.tokenizer, text.heldout).long()
    sequences = max(1, min(setting.probe_tokens, len(stream)) // setting.seq_len)
    return stream[: sequences * setting.seq_len].view(sequences, setting.seq_len)


def _work(pair: str, setting: RoutingSetting) -> int:
    # A training step costs three forward passes; held-out text costs one.
    tokens = 3 * setting.steps * setting.batch_size * setting.seq_len + setting.heldout_bytes
    return tokens * active_parameters(model_config(pair, ARMS[0], setting))
