"""Runs a comparison of softmax and sigmoid attention: quality, retrieval, time and memory.

For every seed, the same small decoder is trained with softmax and with sigmoid attention, on the
same text and batches and from the same initial weights. Then both are tested on held-out text at 1,
2 and 4 times the training length. Smaller decoders learn associative recall and copying. At the
end, with nothing else running, a training step and the operator alone are timed in alternation.

The work consists of units (part x arm x seed). A finished unit is a file that never changes; an
unfinished training has a checkpoint; see `lab.store`. More seeds can be added to a finished
comparison. The rule of the verdict is in `verdict`.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sigmoid_attention.lab.rows import ARMS, BOTH, NONE, ArmRow
from sigmoid_attention.lab.statistics import Interval
from sigmoid_attention.lab.store import ROWS, Store, step_parts
from sigmoid_attention.nn.models import ModelConfig
from sigmoid_attention.studies.compare.advice import advise
from sigmoid_attention.studies.compare.bigram import bigram_bits_per_byte
from sigmoid_attention.studies.compare.cost import run_cost, shortest_seconds, timed
from sigmoid_attention.studies.compare.implementation import (
    OPERATOR,
    Operator,
    fusion,
    operator_in_use,
)
from sigmoid_attention.studies.compare.results import Comparison, SummaryRow, Verdict
from sigmoid_attention.studies.compare.retrieval import COPYING, RECALL, run_task
from sigmoid_attention.studies.compare.settings import CompareSetting, TaskSetting
from sigmoid_attention.studies.compare.summary import BASELINE, UNIT_END, UNIT_SECONDS, summarise
from sigmoid_attention.studies.compare.text import run_text
from sigmoid_attention.studies.compare.verdict import judge
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.environment import (
    describe_machine,
    describe_versions,
    peak_process_bytes,
    resolve_device,
    source_commit,
)
from sigmoid_attention.training.forecast import refuse_too_large
from sigmoid_attention.training.progress import StudyProgress
from sigmoid_attention.training.trainer import Diverged

__all__ = ["Comparison", "Interval", "SummaryRow", "Verdict", "compare", "units"]


@dataclass(frozen=True)
class WorkUnit:
    """A unit of work, whose rows are stored when it is finished.

    `work` is its approximate number of operations, `seconds` its time in addition to them. `parts`
    are the names of intermediate parts, which it stores in addition to the part of its own name.
    """

    name: str
    label: str
    work: float
    run: Callable[[Callable[[float], None]], Iterable[ArmRow]]
    parts: Iterable[str] = ()
    seconds: float = 0.0


def compare(
    setting: CompareSetting, out: Path, *, resume: bool = False, console: Console | None = None
) -> Comparison:
    """Run the missing units of a comparison in `out`, and compute the results from its rows.

    Raises:
        ValueError: the data cannot be used, the requested device or CPU kernel does not exist, or
            `out` holds something that this setting cannot continue; then nothing is overwritten.
        OSError: a file could not be written.
        Diverged: a training run had a value that is not finite; a note names the run.
    """
    device = resolve_device(setting.device)
    refuse_too_large(setting.preset, setting.text.model, setting.text.batch_size, device)
    corpus = load_corpus(setting.data)
    text = Text.prepare(corpus, setting.text.model.vocab_size, setting.text.heldout_bytes)
    n = setting.text.model.max_seq_len
    text.check_lengths(n, n * max(setting.text.times))
    console = console or Console(quiet=True)
    model = setting.text.model
    operator = operator_in_use(device, console, model.head_dim or model.dim // model.num_heads)
    commit = source_commit()
    described: dict[str, Any] = {
        "machine": describe_machine(device) | {OPERATOR: operator.words},
        "versions": describe_versions() | ({"commit": commit} if commit else {}),
        "provenance": dataclasses.asdict(corpus.provenance),
    }
    # A resumed comparison must share these: rows of another text, torch or operator are no
    # replicates. The seeds only select runs, so more can be added to a comparison.
    fixed = setting.to_dict()
    del fixed["command"], fixed["seeds"]
    versions = {name: described["versions"][name] for name in ("python", "torch")}
    identity = fixed | {
        "text_sha256": corpus.provenance.sha256,
        "measured_with": versions | {"cpu_kernel": operator.path or "none"},
    }
    store = Store(out, identity, described, resume=resume)
    refuse_fewer_seeds(setting, store)
    console.print(corpus.notice(), highlight=False, markup=False, soft_wrap=True)

    todo = [
        unit
        for unit in units(setting, text, device, operator, store)
        if not store.is_done(unit.name, unit.parts)
    ]
    work, seconds = sum(unit.work for unit in todo), sum(unit.seconds for unit in todo)
    with StudyProgress(work, len(todo), console, seconds) as progress:
        for unit in todo:
            progress.begin(unit.label, unit.work, unit.seconds)
            started = time.monotonic()
            try:
                rows = list(unit.run(progress.advance))
            except Diverged as error:
                error.add_note(f"in the run: {unit.label}")
                raise
            store.put(unit.name, [*rows, *_measurement_rows(time.monotonic() - started)])
            progress.end()

    table = store.merge()
    summary, gained = summarise(table), fusion(table)
    return Comparison(
        table,
        summary,
        gained,
        judge(summary, table),
        setting.to_dict(),
        **described,
        path=str(out / ROWS),
        advice=advise(summary, table, gained, setting, out),
    )


def refuse_fewer_seeds(setting: CompareSetting, store: Store) -> None:
    """Raise ``ValueError`` if the folder has rows for more seeds than the setting."""
    last = max(store.rows()["seed"].to_pylist(), default=NONE)
    begun = last + 1 - setting.first_seed
    if begun > setting.seeds:
        raise ValueError(
            f"--seeds: {store.out} has rows of {begun} seeds already, got {setting.seeds}; "
            f"nothing was overwritten (give --seeds {begun} or more, or name another folder)"
        )


def _measurement_rows(seconds: float) -> Iterator[ArmRow]:
    """The rows of a unit's memory, duration and end time."""
    yield ArmRow(BOTH, "process_peak_bytes", peak_process_bytes(), "bytes")
    yield ArmRow(BOTH, UNIT_SECONDS, seconds, "seconds")
    yield ArmRow(BOTH, UNIT_END, time.time(), "seconds since 1970 (UTC)")


def units(
    setting: CompareSetting, text: Text, device: torch.device, operator: Operator, store: Store
) -> Iterator[WorkUnit]:
    """All units in the order of execution: seed by seed, so that pairs end early."""
    yield WorkUnit("baseline", "byte pairs", _baseline_work(text), partial(_baseline, text))
    tasks = {RECALL: setting.recall, COPYING: setting.copying}
    for seed in range(setting.first_seed, setting.first_seed + setting.seeds):
        for arm in ARMS:
            name = f"{arm}-seed{seed}"
            yield WorkUnit(
                f"text-{name}",
                f"text, {arm}, seed {seed}",
                _text_work(setting),
                partial(
                    run_text, setting.text, text, arm, seed, store.run_folder(name), device, store
                ),
                parts=step_parts(f"text-{name}", setting.text.steps, setting.text.test_every),
            )
        for task, chosen in tasks.items():
            for arm in ARMS:
                name = f"{task}-{arm}-seed{seed}"
                yield WorkUnit(
                    name,
                    f"{task}, {arm}, seed {seed}",
                    _task_work(chosen),
                    partial(
                        run_task, chosen, task, arm, seed, store.run_folder(name), device, store
                    ),
                    parts=step_parts(name, chosen.steps, chosen.test_every),
                )
    yield WorkUnit(
        "cost",
        "time and memory",
        _cost_work(setting, operator),
        partial(run_cost, setting, text, device, operator),
        seconds=shortest_seconds(setting, operator),
    )


def _baseline(text: Text, _progress: Callable[[float], None]) -> Iterator[ArmRow]:
    bits = bigram_bits_per_byte(text.corpus.train, text.heldout)
    yield ArmRow(BOTH, BASELINE, bits, "bits/byte")


# A rough count of operations: two per parameter and token, and four per query-key pair and channel
# (scores, sum of values). A backward pass costs two forward passes.
def _forward_work(config: ModelConfig, tokens: int, length: int) -> float:
    per_layer = 4 * config.dim**2 + 3 * config.dim * config.hidden_dim
    parameters = config.layers * per_layer + config.vocab_size * config.dim
    return tokens * (2 * parameters + 4 * config.layers * length * config.dim)


def _text_work(setting: CompareSetting) -> float:
    chosen = setting.text
    n = chosen.model.max_seq_len
    training = 3 * chosen.steps * _forward_work(chosen.model, chosen.batch_size * n, n)
    tests = chosen.steps / chosen.test_every * _forward_work(chosen.model, chosen.test_bytes, n)
    reading = sum(_forward_work(chosen.model, chosen.heldout_bytes, t * n) for t in chosen.times)
    return training + tests + reading


def _baseline_work(text: Text) -> float:
    # Counting is limited by memory, so a byte takes as long as many operations.
    return 1e3 * text.corpus.provenance.bytes


def _task_work(chosen: TaskSetting) -> float:
    n = chosen.model.max_seq_len
    batch = _forward_work(chosen.model, chosen.batch_size * n, n)
    tests = chosen.test_batches * chosen.steps / chosen.test_every
    return batch * (3 * chosen.steps + tests)


def _cost_work(setting: CompareSetting, operator: Operator) -> float:
    config, chosen = setting.text.model, setting.cost
    n = config.max_seq_len
    steps = 3 * _forward_work(config, setting.text.batch_size * n, n)
    # Forward alone, and forward with backward, cost four forward passes together.
    operators = sum(4 * 4 * chosen.batch_size * config.dim * length**2 for length in chosen.lengths)
    return len(timed(operator)) * chosen.rounds * (steps + operators)
