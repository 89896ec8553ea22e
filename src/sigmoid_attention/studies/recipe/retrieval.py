"""Trains one candidate of the recipe study to recall and to copy, and tests it beyond n.

Each batch holds one task. The tasks take turns: recall with 4, 8, 16 and 32 pairs, then copying.
All have the training length n. The tests are those tasks at n and at 4n: longer sequences have more
filler between pairs and queries, and a longer string to copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe import mechanism
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.measure import at_most_seen
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.studies.recipe.unit import DIVERGED, PREFIX, Unit, while_training
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.evaluate import accuracy
from sigmoid_attention.training.model_folder import new_model
from sigmoid_attention.training.tasks import Copying, MultiQueryRecall
from sigmoid_attention.training.trainer import Diverged, train

# The `source` of a setting whose runs are these tasks.
SOURCE = "retrieval"
PAIRS = (4, 8, 16, 32)
TIMES = (1, 4)
TEST_BATCHES = 16
# The metrics: "recall_8" is the accuracy of recall with 8 pairs, "copy" that of copying, each at a
# row's length; "_windowed" with heads that see n tokens at most.
RECALL, COPY, WINDOWED = "recall_{}", "copy", "_windowed"
COURSE = "retrieval_course"


@dataclass(frozen=True)
class Retrieval:
    """The tasks by turns, as batches of the trainer.

    Example:
        >>> tasks = Retrieval.of(RecipeSetting(source=SOURCE), seed=0)
        >>> [int((tasks.batch(step)[1] != -100).sum()) // 8 for step in range(5)]
        [4, 8, 16, 32, 128]
    """

    tasks: dict[str, MultiQueryRecall | Copying]

    @classmethod
    def of(cls, setting: RecipeSetting, seed: int) -> "Retrieval":
        """The tasks of a seed at the training length."""
        n, batch_size, vocabulary = setting.seq_len, setting.batch_size, ByteTokenizer.vocab_size
        tasks: dict[str, MultiQueryRecall | Copying] = {
            RECALL.format(pairs): MultiQueryRecall(n, batch_size, pairs, vocabulary, seed)
            for pairs in PAIRS
        }
        return cls(tasks | {COPY: Copying(n, batch_size, vocabulary, seed)})

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return list(self.tasks.values())[step % len(self.tasks)].batch(step)

    def tests(self, times: int) -> Iterator[tuple[str, int, list[tuple[Tensor, Tensor]]]]:
        """The name, length and held-out batches of each task at ``times`` its length."""
        for name, task in self.tasks.items():
            longer = replace(task, seq_len=times * task.seq_len)
            yield name, longer.seq_len, longer.heldout(TEST_BATCHES)

    def describe(self) -> dict[str, Any]:
        return {"kind": SOURCE} | {name: task.describe() for name, task in self.tasks.items()}


def provenance(setting: RecipeSetting) -> dict[str, Any]:
    """What the tasks are; they are random."""
    return Retrieval.of(setting, seed=0).describe()


def train_unit(setting: RecipeSetting, unit: Unit, folder: Path) -> list[ArmRow]:
    """Train one model, or continue it from the checkpoint in ``folder``; its rows."""
    candidate = CANDIDATES[unit.candidate]
    sizes = {"vocab_size": ByteTokenizer.vocab_size, **setting.sizes}
    model = new_model(candidate.config(**sizes), unit.seed)
    candidate.change(model)
    tasks = Retrieval.of(setting, unit.seed)
    stored = Store(folder / "tests", {}, {}, resume=True)
    few = {name: batches[:2] for name, _, batches in tasks.tests(1)}
    repeated = mechanism.repeated(torch.arange(1, ByteTokenizer.vocab_size), setting.seq_len)

    def tested(done: int) -> Iterator[ArmRow]:
        for name, batches in few.items():
            share = accuracy(model, batches)
            yield ArmRow(unit.arm, f"{COURSE}_{name}", share, "fraction", unit.seed, done)
        for layer, scores in enumerate(mechanism.prefix_matching(model, repeated)):
            value = scores.max().item()
            yield ArmRow(unit.arm, PREFIX, value, "share", unit.seed, done, layer=layer)

    config, on_step = unit.training(setting), while_training(setting, stored, tested)
    try:
        train(model, tasks, config, out=folder, resume=True, progress=False, on_step=on_step)
    except Diverged:
        return [ArmRow(unit.arm, DIVERGED, 1.0, "runs", unit.seed)]
    course = [ArmRow.of(row) for row in stored.rows().to_pylist()]
    return [*course, *tested(setting.steps), *_accuracies(model, tasks, setting, unit)]


def _accuracies(
    model: Any, tasks: Retrieval, setting: RecipeSetting, unit: Unit
) -> Iterator[ArmRow]:
    for times in TIMES:
        for name, length, batches in tasks.tests(times):
            share = accuracy(model, batches)
            yield ArmRow(unit.arm, name, share, "fraction", unit.seed, length=length)
            with at_most_seen(model, setting.seq_len):
                share = accuracy(model, batches)
            yield ArmRow(unit.arm, name + WINDOWED, share, "fraction", unit.seed, length=length)
