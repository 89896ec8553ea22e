"""A synthetic comparison: curves from formulas, in the shape of real runs, not measured.

It serves to test the report. Its verdict states that it is synthetic, so a page made from it cannot
be mistaken for a result.
"""

import dataclasses
import json
import math
import random
from collections.abc import Collection, Iterator

import pyarrow as pa

from sigmoid_attention.lab.rows import ARMS, ROW_SCHEMA, SIGMOID, SOFTMAX, ArmRow
from sigmoid_attention.studies.compare.implementation import OPERATOR, fusion
from sigmoid_attention.studies.compare.results import UNFUSED, Advice, Comparison, Verdict
from sigmoid_attention.studies.compare.summary import COURSE, UNIT_END, UNIT_SECONDS, summarise

STEPS, LENGTH, LAYERS, TURNS = 400, 256, 4, 9
# Step at which half of the answers are right, softmax and sigmoid.
LEARNT_AT = {"recall_accuracy": (150, 210), "copy_accuracy": (90, 120)}
SETTING = {
    "command": "sigmoid-attention compare --data stdlib --preset synthetic --seeds 3",
    "preset": "synthetic",
    "data": "stdlib",
    "seeds": 3,
    "text": {
        "model": {
            "dim": 128,
            "layers": LAYERS,
            "max_seq_len": LENGTH,
            "qk_norm": "rms",
            "window_size": None,
        },
        "steps": STEPS,
        "batch_size": 4,
        "lr": 3e-3,
        "softmax_lr": 3e-3,
        "heldout_bytes": 65_536,
        "times": [1, 2, 4],
    },
    "cost": {"lengths": [256, 512, 1024, 2048, 4096], "rounds": TURNS},
}
MACHINE = {"device": "cpu", "processor": "a synthetic processor", "cores": 2, "memory_bytes": 2**34}
# Words and whether they tell of something fused.
KERNEL = ("the fused C++ kernel (vector path avx512)", True)
NO_KERNEL = ("PyTorch alone (no fused kernel: no C++ compiler was found)", False)
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "sigmoid-attention": "0.1.0"}
PROVENANCE = {
    "source": "stdlib",
    "version": "CPython 3.11.2",
    "licence": "PSF-2.0",
    "split": "whole files held out",
    "files": 612,
    "bytes": 9_812_345,
    "sha256": "ab" * 32,
}
WRITTEN_BYTES = b"self, name):\n    raise ValueError(name)\n"
VERDICT = Verdict(
    "Synthetic: stay with softmax at this size, by a small margin",
    "Synthetic values, from formulas. Over three seeds sigmoid attention ends 0.04 bits per "
    "byte behind softmax and learns recall later; its operator takes longer at 256 tokens and "
    "less from 512 on.",
    (
        "Synthetic rule: switch if the interval of the difference in validation loss lies below "
        "0.02 bits per byte.",
        "No interval of a retrieval accuracy lies below 0.",
    ),
    ("First synthetic headline.", "Second synthetic headline."),
)
ADVICE = (
    Advice("Synthetic advice: train more seeds.", "sigmoid-attention compare --seeds 9 --resume"),
    Advice("Synthetic advice without a command."),
)


def synthetic_comparison(
    *,
    seeds: int = 3,
    arms: Collection[str] = ARMS,
    without: tuple[str, ...] = (),
    layers: int = LAYERS,
    stopped: tuple[str, int, int] | None = None,
    provenance: dict | None = None,
    operator: tuple[str, bool] = KERNEL,
    headline: str = VERDICT.headline,
    fails: tuple[int, ...] = (),
    written: bytes = WRITTEN_BYTES,
    pairs: float = 3.456,
) -> Comparison:
    """A comparison over `seeds` seeds; rows whose metric begins with one of `without` are left out.

    `stopped` = (arm, seed, step) ends that run's training there; its validation is not finite.
    The seeds in `fails` never learn recall. `written` is what the sigmoid arm writes, `pairs` the
    loss of a table of byte pairs.
    """
    words, fused = operator
    rows = [
        row
        for arm in arms
        for row in (*_seeds(arm, seeds, layers, fails), *_costs(arm), *_written(arm, written))
    ]
    if fused and SIGMOID in arms:
        rows += _unfused()
    rows.append(ArmRow("both", "bigram_bits_per_byte", pairs, "bits/byte"))
    # Two units, the second begun as soon as the first ended: 12:00 to 12:05 on 1 May 2026.
    for spent, end in ((100.0, 1_777_636_900), (200.0, 1_777_637_100)):
        rows.append(ArmRow("both", UNIT_SECONDS, spent, "seconds"))
        rows.append(ArmRow("both", UNIT_END, end, "seconds since 1970 (UTC)"))
    if stopped:
        rows = [_stop(row, *stopped) for row in rows if not _is_after(row, *stopped)]
    rows = [row for row in rows if not row.metric.startswith(without)]
    machine = MACHINE | {OPERATOR: words}
    stamp = {
        "setting": json.dumps(SETTING),
        "machine": json.dumps(machine),
        "versions": json.dumps(VERSIONS),
        "provenance": json.dumps(provenance or PROVENANCE),
    }
    table = _table(rows, stamp)
    return Comparison(
        table,
        summarise(_table([row for row in rows if math.isfinite(row.value)], stamp)),
        fusion(table),
        dataclasses.replace(VERDICT, headline=headline),
        SETTING,
        machine,
        VERSIONS,
        provenance or PROVENANCE,
        "runs/synthetic/rows.parquet",
        ADVICE,
    )


def _table(rows: list[ArmRow], stamp: dict[str, str]) -> pa.Table:
    return pa.Table.from_pylist([dataclasses.asdict(r) | stamp for r in rows], schema=ROW_SCHEMA)


def _seeds(arm: str, seeds: int, layers: int, fails: tuple[int, ...]) -> Iterator[ArmRow]:
    for seed in range(seeds):
        yield from _language(arm, seed)
        yield from _retrieval(arm, seed, seed in fails)
    # The recorder looks inside one run only.
    yield from _inside(arm, layers)


def _language(arm: str, seed: int) -> Iterator[ArmRow]:
    shared, separate = random.Random(seed), random.Random(f"{arm}{seed}")
    slow = 1.0 if arm == SOFTMAX else 1.12
    for step in range(1, STEPS + 1):
        level = 1.55 + 4.0 * math.exp(-step / (30 * slow)) + 0.9 * slow / (1 + step / 60)
        loss = level + 0.05 * shared.gauss(0, 1) + 0.02 * separate.gauss(0, 1)
        yield ArmRow(arm, "train_loss", 1.44 * loss, "bits/byte", seed, step=step)
        if step % (STEPS // 10) == 0:
            yield ArmRow(arm, COURSE, 1.44 * level, "bits/byte", seed, step=step, length=LENGTH)
    end = (
        (2.262 if arm == SOFTMAX else 2.301)
        + 0.02 * shared.gauss(0, 1)
        + 0.005 * separate.gauss(0, 1)
    )
    beyond = {1: 0.0, 2: 0.05, 4: 0.12} if arm == SOFTMAX else {1: 0.0, 2: 0.02, 4: 0.31}
    for times, more in beyond.items():
        bits = end + more * (1 + 0.2 * separate.gauss(0, 1))
        length = times * LENGTH
        yield ArmRow(arm, "validation_bits_per_byte", bits, "bits/byte", seed, length=length)


def _retrieval(arm: str, seed: int, fails: bool) -> Iterator[ArmRow]:
    for metric, onsets in LEARNT_AT.items():
        rng = random.Random(f"{metric}{arm}{seed}")
        middle = onsets[arm == SIGMOID] * (1 + 0.1 * rng.gauss(0, 1))
        height = 0.96 - 0.04 * rng.random()
        for step in range(25, 301, 25):
            right = 0.02 + height / (1 + math.exp((middle - step) / 14))
            if fails and metric == "recall_accuracy":
                right = 0.2 + 0.02 * rng.random()
            yield ArmRow(arm, metric, right, "fraction", seed, step=step)


def _inside(arm: str, layers: int) -> Iterator[ArmRow]:
    rng = random.Random(arm)
    start, end = (0.2, 0.9) if arm == SOFTMAX else (0.03, 1.4)
    for step in range(0, STEPS + 1, 10):
        for layer in range(layers):
            grown = start + (end - start) * (1 - math.exp(-step / 90)) * (1 + 0.3 * layer)
            size = grown * (1 + 0.05 * rng.gauss(0, 1))
            yield ArmRow(arm, "attention_output_norm", size, "rms", 0, step=step, layer=layer)
            mass, top = (1.0, 0.3) if arm == SOFTMAX else (size / 2, 0.1)
            yield ArmRow(arm, "attention_mass", mass, "weight", 0, step=step, layer=layer)
            yield ArmRow(arm, "largest_weight", top * size, "weight", 0, step=step, layer=layer)


def _written(arm: str, content: bytes) -> Iterator[ArmRow]:
    texts = {
        "sample_prompt": b"def first(",
        "sample_text": content if arm == SIGMOID else b"items):\n    return items[0]\n",
    }
    for metric, text in texts.items():
        for place, byte in enumerate(text):
            yield ArmRow(arm, metric, byte, "byte", 0, step=place)


def _costs(arm: str) -> Iterator[ArmRow]:
    sigmoid = arm == SIGMOID
    for turn in range(TURNS):
        seconds = (0.231 if sigmoid else 0.214) * (
            1 + 0.02 * random.Random(f"{arm}{turn}").random()
        )
        yield ArmRow(arm, "step_seconds", seconds, "seconds", step=turn)
        for length in SETTING["cost"]["lengths"]:
            blocks = (length / 256) ** 2
            jitter = 1 + 0.03 * random.Random(f"{arm}{length}{turn}").random()
            forward = (2.1e-4 + 1.9e-4 * blocks if sigmoid else 8e-5 + 2.6e-4 * blocks) * jitter
            for part, factor in (("forward", 1.0), ("training", 3.1)):
                metric = f"operator_{part}_seconds"
                yield ArmRow(arm, metric, forward * factor, "seconds", step=turn, length=length)
    for length in SETTING["cost"]["lengths"]:
        memory = 3e5 * (length / 256) * (1.0 if sigmoid else 1.4)
        yield ArmRow(arm, "operator_peak_bytes", memory, "bytes", length=length)
    yield ArmRow(arm, "peak_memory_bytes", 6.1e8 if sigmoid else 5.9e8, "bytes")
    yield ArmRow(arm, "parameters", 812_345, "parameters", 0)


def _unfused() -> Iterator[ArmRow]:
    """The sigmoid arm's times without its kernel: longer by a factor that grows with length."""
    for row in _costs(SIGMOID):
        if row.unit == "seconds":
            factor = 1.6 if row.metric == "step_seconds" else 1.9 + row.length / 2048
            jitter = 1 + 0.04 * random.Random(f"{row.metric}{row.length}{row.step}").random()
            yield dataclasses.replace(row, arm=UNFUSED, value=factor * jitter * row.value)


def _is_after(row: ArmRow, arm: str, seed: int, step: int) -> bool:
    return (row.arm, row.seed) == (arm, seed) and row.step > step


def _stop(row: ArmRow, arm: str, seed: int, _: int) -> ArmRow:
    if (row.arm, row.seed, row.metric) == (arm, seed, "validation_bits_per_byte"):
        return dataclasses.replace(row, value=math.nan)
    return row
