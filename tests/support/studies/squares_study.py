"""A study without mixtures: squares of numbers, in tasks that a test can observe and delay."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from sigmoid_attention.lab.figure import loglog, panels
from sigmoid_attention.lab.study import Finding, Results, Row, Study, Task


@dataclass(frozen=True)
class Numbers:
    """Numbers to square; ``diary`` is a file that gets a line with the process of every run."""

    numbers: tuple[int, ...]
    seconds: float = 0.0
    diary: str = ""


def square(setting: Numbers) -> Iterator[Row]:
    if setting.diary:
        with open(setting.diary, "a") as diary:
            print(os.getpid(), torch.get_num_threads(), *setting.numbers, file=diary)
    time.sleep(setting.seconds)
    for replicate in range(3):
        for number in setting.numbers:
            yield Row(
                "square",
                number**2 + replicate / 8,
                n=float(number),
                replicate=replicate,
                converged=replicate < 2,
                at_box=number > 2,
            )
    yield Row("free", 1.0)


def broken(setting: Numbers) -> Iterator[Row]:
    yield from square(setting)
    raise ZeroDivisionError("nothing goes\n into nothing")


def deadly(setting: Numbers) -> Iterator[Row]:
    os._exit(3)


def task(*numbers: int, part="late", cell=None, run=square, work=1.0, **setting) -> Task:
    return Task(cell or f"cell {numbers[0]}", part, Numbers(numbers, **setting), run, work)


def judge(results: Results) -> list[Finding]:
    return [
        Finding(
            cell,
            "n^2 | always",
            f"{sum(task_run.share('square') for task_run in measured):.2f}",
            "reproduced" if part == "late" else "not reproduced",
            "of the\nrows",
            f"{len(measured)} truths",
        )
        for (cell, part), measured in results.items()
    ]


def draw(results: Results) -> Figure:
    figure, axes = panels(len(results))
    for axis, (cell, _), measured in zip(axes, results, results.values(), strict=True):
        sizes, values = measured[0].grid("square")
        loglog(axis, sizes, np.nan_to_num(values, nan=1.0), cell, slope=2.0)
    return figure


def study(*tasks: Task, name: str = "squares") -> Study:
    return Study(
        name,
        f"The {name}",
        "Squares grow with the square.",
        "arXiv 0000.00000, table 1",
        "A rule in words.",
        lambda: list(tasks),
        judge,
        draw,
    )


def held_up(book, seconds=300.0):
    """A task that holds one worker up, and two that are left to the other."""
    slow = task(3, diary=book, seconds=seconds, work=9.0)
    return study(slow, task(1, diary=book), task(2, diary=book))


STUDY = study(task(1, 2, 3), task(4, 5, 6), task(4, 5, 6, part="early", seconds=0.01))


def diary(path: Path) -> list[list[int]]:
    """What ran, a line each: process, threads, numbers."""
    if not path.exists():
        return []
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
