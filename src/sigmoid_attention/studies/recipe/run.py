"""Trains the candidates of the recipe study in parallel processes, and stores what they reach.

A folder continues where it ended: a finished run has its rows, an unfinished one its checkpoint.
"""

import dataclasses
import shutil
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import torch
from rich.console import Console

from sigmoid_attention.lab.pool import process_pool
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe import language, retrieval
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.studies.recipe.unit import units
from sigmoid_attention.training.environment import (
    describe_machine,
    describe_versions,
    usable_cores,
)
from sigmoid_attention.training.progress import SweepProgress


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
    kind = retrieval if setting.source == retrieval.SOURCE else language
    stamp = {
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "provenance": kind.provenance(setting),
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
                pool.submit(kind.train_unit, setting, unit, store.run_folder(unit.name)): unit
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
