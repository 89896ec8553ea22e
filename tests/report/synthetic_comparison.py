"""A comparison that nobody measured: shapes of curves as real runs have them, made from formulas.

It exists to test the report. Its verdict says that it is synthetic, so that a page made from it
cannot be taken for a result.
"""

import json
import math
import random
from collections.abc import Iterable

import pyarrow as pa

from sigmoid_attention.studies.results import (
    ARMS,
    NONE,
    ROW_SCHEMA,
    SIGMOID,
    SOFTMAX,
    Comparison,
    Interval,
    SummaryRow,
    Verdict,
)
from sigmoid_attention.studies.statistics import paired_difference, paired_ratio, t_interval

STEPS, LENGTH, LAYERS, ROUNDS = 400, 256, 4, 7
LOSS = {SOFTMAX: 2.262, SIGMOID: 2.301}
TASKS = {"recall_accuracy": (150, 210), "copy_accuracy": (90, 120)}
SETTING = {
    "preset": "small",
    "device": "cpu",
    "training_length": LENGTH,
    "model": {"dim": 128, "layers": LAYERS, "heads": 4, "position": "alibi", "qk_norm": "rms"},
    "text": {"steps": STEPS, "batch_size": 16, "lr": 3e-3, "betas": [0.9, 0.95], "bf16": False},
    "command": "sigmoid-attention compare --data stdlib --seeds 3 --out runs/compare",
}
MACHINE = {"device": "cpu", "processor": "a synthetic processor", "cores": 2, "memory_bytes": 2**34}
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


def synthetic_comparison(
    *,
    seeds: int = 3,
    arms: Iterable[str] = ARMS,
    without: Iterable[str] = (),
    layers: int = LAYERS,
    stopped: tuple[str, int, int] | None = None,
    provenance: dict | None = None,
    headline: str = "Synthetic: stay with softmax at this size, by a small margin",
) -> Comparison:
    """A comparison over `seeds` seeds; rows whose metric begins with one of `without` are left out.

    `stopped` = (arm, seed, step) makes that run's training end early, its validation not finite.
    """
    values: list[tuple] = []
    for arm in arms:
        for seed in range(seeds):
            values += _language(arm, seed, layers)
            values += _tasks(arm, seed)
        values += _costs(arm)
    if stopped:
        values = [kept for v in values if (kept := _stop(v, *stopped))]
    kept = [v for v in values if not v[2].startswith(tuple(without))]
    verdict = Verdict(
        headline,
        "Synthetic values, measured by nobody. Over three seeds sigmoid attention ends 0.04 bits "
        "per byte behind softmax and learns recall later; its operator takes longer at 256 tokens "
        "and less from 512 on.",
        "Synthetic rule: switch if the interval of the difference in validation loss lies below "
        "0.02 bits per byte and no interval of a retrieval accuracy lies below 0.",
    )
    stamp = [json.dumps(part) for part in (SETTING, MACHINE, VERSIONS, provenance or PROVENANCE)]
    columns = zip(*((*v, *stamp) for v in kept), strict=True) if kept else [()] * len(ROW_SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, ROW_SCHEMA, strict=True)]
    return Comparison(
        pa.Table.from_arrays(arrays, schema=ROW_SCHEMA),
        _summary(kept),
        verdict,
        SETTING,
        MACHINE,
        VERSIONS,
        provenance or PROVENANCE,
    )


def _language(arm: str, seed: int, layers: int) -> Iterable[tuple]:
    noise = random.Random(seed)
    own = random.Random(f"{arm}{seed}")
    shift = 0.02 * noise.gauss(0, 1) + 0.005 * own.gauss(0, 1)
    slow = 1.0 if arm == SOFTMAX else 1.12
    for step in range(1, STEPS + 1):
        level = 1.55 + 4.0 * math.exp(-step / (30 * slow)) + 0.9 * slow / (1 + step / 60)
        yield (
            arm,
            seed,
            "train_loss",
            step,
            NONE,
            NONE,
            level + 0.05 * noise.gauss(0, 1),
            "nats/token",
        )
    for k, times in enumerate((1, 2, 4)):
        longer = (0.0, 0.05, 0.12)[k] if arm == SOFTMAX else (0.0, 0.02, 0.31)[k]
        value = LOSS[arm] + shift + longer * (1 + 0.2 * own.gauss(0, 1))
        yield arm, seed, "validation_bits_per_byte", STEPS, times * LENGTH, NONE, value, "bits/byte"
    for step in range(0, STEPS + 1, 10):
        for layer in range(layers):
            start, end = (0.2, 0.9) if arm == SOFTMAX else (0.03, 1.4)
            grown = start + (end - start) * (1 - math.exp(-step / 90)) * (1 + 0.3 * layer)
            size = grown * (1 + 0.05 * own.gauss(0, 1))
            yield arm, seed, "attention_output_norm", step, NONE, layer, size, ""


def _tasks(arm: str, seed: int) -> Iterable[tuple]:
    for metric, onset in TASKS.items():
        own = random.Random(f"{metric}{arm}{seed}")
        middle = onset[arm == SIGMOID] * (1 + 0.1 * own.gauss(0, 1))
        height = 0.96 - 0.04 * own.random()
        for step in range(0, 301, 25):
            value = 0.02 + height / (1 + math.exp((middle - step) / 14))
            yield arm, seed, metric, step, NONE, NONE, value, "fraction"


def _costs(arm: str) -> Iterable[tuple]:
    sigmoid = arm == SIGMOID
    for length in (256, 512, 1024, 2048, 4096):
        blocks = (length / 256) ** 2
        for round_ in range(ROUNDS):
            jitter = 1 + 0.03 * random.Random(f"{arm}{length}{round_}").random()
            forward = (2.1e-4 + 1.9e-4 * blocks if sigmoid else 8e-5 + 2.6e-4 * blocks) * jitter
            for part, factor in (("forward", 1.0), ("training", 3.1)):
                name = f"operator_{part}_seconds"
                yield arm, round_, name, NONE, length, NONE, forward * factor, "seconds"
        memory = 3e5 * (length / 256) * (1 if sigmoid else 1.4)
        yield arm, NONE, "operator_peak_bytes", NONE, length, NONE, memory, "bytes"
    for round_ in range(ROUNDS):
        jitter = 1 + 0.02 * random.Random(f"{arm}{round_}").random()
        seconds = (0.231 if sigmoid else 0.214) * jitter
        yield arm, round_, "step_seconds", NONE, NONE, NONE, seconds, "seconds"
    yield arm, NONE, "peak_memory_bytes", NONE, NONE, NONE, 6.1e8 if sigmoid else 5.9e8, "bytes"


def _stop(value: tuple, arm: str, seed: int, step: int) -> tuple | None:
    if value[:2] != (arm, seed) or value[2].startswith(("operator", "step", "peak")):
        return value
    if value[2] == "validation_bits_per_byte":
        return (*value[:6], math.nan, value[7])
    return value if value[3] <= step else None


def _summary(values: list[tuple]) -> list[SummaryRow]:
    questions = [
        ("validation_bits_per_byte", "Validation loss", 256, True, "difference"),
        ("validation_bits_per_byte", "Validation loss at 2× length", 512, True, "difference"),
        ("validation_bits_per_byte", "Validation loss at 4× length", 1024, True, "difference"),
        ("recall_accuracy", "Associative recall", NONE, False, "difference"),
        ("copy_accuracy", "Copying", NONE, False, "difference"),
        ("step_seconds", "Training step", NONE, True, "ratio"),
        ("operator_training_seconds", "Operator at 1,024 tokens", 1024, True, "ratio"),
        ("operator_peak_bytes", "Operator memory at 1,024 tokens", 1024, True, "ratio"),
        ("peak_memory_bytes", "Peak memory of training", NONE, True, "ratio"),
    ]
    return [row for question in questions if (row := _row(values, *question))]


def _row(values, metric, label, length, lower_is_better, kind) -> SummaryRow | None:
    ends: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    unit = ""
    for arm, seed, name, _, at, _, value, its_unit in values:
        if name == metric and at == length and math.isfinite(value):
            ends[arm][seed], unit = value, its_unit
    if not ends[SOFTMAX] and not ends[SIGMOID]:
        return None
    shared = sorted(ends[SOFTMAX].keys() & ends[SIGMOID].keys())
    pairs = [[ends[arm][seed] for seed in shared] for arm in (SOFTMAX, SIGMOID)]
    apart = paired_ratio(*pairs) if kind == "ratio" else paired_difference(*pairs)
    means: list[Interval] = [t_interval(list(ends[arm].values())) for arm in (SOFTMAX, SIGMOID)]
    return SummaryRow(metric, label, unit, length, lower_is_better, *means, apart, kind)
