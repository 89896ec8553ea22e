"""Checks of the mixtures laboratory: time to the optimum and against SGD, memory, cores."""

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.memory import ROOT
from benchmarks.sgd import Observed, plain_sgd, sufficient
from sigmoid_attention.lab.pool import process_pool
from sigmoid_attention.mixtures.rates.measure import RateCurve, measure
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth, start
from sigmoid_attention.mixtures.solver import chi2, minimise
from sigmoid_attention.mixtures.stochastic import StochasticRecipe, paper_mode
from sigmoid_attention.training.environment import (
    describe_machine,
    describe_versions,
    usable_cores,
)
from sigmoid_attention.training.files import reading, sealed, unsealed, write_whole

GIB = 2**30
FAMILIES = (("sigmoid", "relu", 1.0), ("softmax", "gelu", 2.0))
CURVE = tuple(round(10 ** (2 + i / 3)) for i in range(10))


@dataclass(frozen=True)
class Scale:
    """How much is measured; `QUICK` shows that it runs, not how fast it is.

    Args:
        sgd_replicates: of the curve's 20, those that SGD trains too; its cost is proportional.
        gain_curves: exactly specified curves whose mean gain is compared, since that of one errs.
    """

    sizes: tuple[int, ...] = CURVE
    replicates: int = 20
    rounds: int = 3
    gain_curves: int = 10
    epochs: int = 100
    sgd_replicates: int = 2
    raw_n: int = 10**6
    wide: int = 8
    wide_nodes: int = 1024
    wide_batches: int = 10
    tasks: int = 16


USUAL = Scale()
QUICK = Scale(
    sizes=(100, 1000), replicates=3, rounds=1, gain_curves=1, epochs=2, sgd_replicates=1,
    raw_n=10**4, wide=2, wide_nodes=64, wide_batches=1, tasks=2,
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A measured number, its bound, and a note (`said`) on other measurements."""

    suite: str
    name: str
    value: float
    unit: str
    bound: float
    at_least: bool = False
    said: str = ""
    values: tuple[float, ...] = ()
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


# Curves on the finite design ------------------------------------------------------------------


def curve(scale: Scale) -> Iterator[Check]:
    """CPU time of a curve with a surplus expert, and the gain of one without."""
    for gate, expert, bound in FAMILIES:
        over = RateSetting(gate, expert, sizes=scale.sizes, replicates=scale.replicates)
        # The search for a truth is not part of a fit.
        draw_truth(over)
        times, fits = _timed(lambda setting=over: measure(setting), scale.rounds)
        yield Check(
            "curve", f"{gate} {expert}, k* = 2 fitted by 3", statistics.median(times), "CPU s",
            bound, said=f"{fits.gain.size} fits, {fits.converged.mean():.0%} converged",
            values=times,
        )  # fmt: skip
        exact = replace(over, k=3, extra=0)
        draw_truth(exact)
        times, _ = _timed(lambda setting=exact: measure(setting), scale.rounds)
        yield Check(
            "curve", f"{gate} {expert}, k* = 3 fitted by 3", statistics.median(times), "CPU s",
            bound, values=times,
        )  # fmt: skip
        curves = [measure(replace(exact, seed=seed)) for seed in range(scale.gain_curves)]
        yield _gain("curve", f"{gate} {expert}, k* = 3 fitted by 3", curves, 0.5)


def wide(scale: Scale) -> Iterator[Check]:
    """The gain of many experts in many dimensions at n = 1e6."""
    for gate in ("sigmoid", "softmax"):
        setting = RateSetting(
            gate, "gelu", d=scale.wide, k=scale.wide, extra=0, nodes=scale.wide_nodes,
            sizes=(10**6,), replicates=scale.replicates,
        )  # fmt: skip
        draw_truth(setting)
        started = time.process_time()
        batches = [measure(replace(setting, seed=seed)) for seed in range(scale.wide_batches)]
        seconds = (time.process_time() - started) / scale.wide_batches
        name = f"{gate} gelu, k* = d = {scale.wide}, n = 1e6"
        yield _gain("wide", name, batches, 2.0, f", {seconds:.1f} CPU s for {scale.replicates}")


def _gain(
    suite: str, name: str, curves: Iterable[RateCurve], bound: float, said: str = ""
) -> Check:
    """The distance of the mean gain from its expected value, the number of parameters.

    Of m fits the mean has a standard error of sqrt(2 P / m): one batch of 20 with 136 parameters
    errs by 3.7, so that several batches are taken, each also told by itself.
    """
    curves = list(curves)
    gains = np.concatenate([one.gain.ravel() for one in curves])
    free = curves[0].free
    error = gains.std(ddof=1) / math.sqrt(len(gains))
    return Check(
        suite, f"gain, {name}", abs(float(gains.mean()) - free), "chi2", bound,
        said=f"{gains.mean():.2f} ± {error:.2f} of {free} parameters, {len(gains)} fits{said}",
        values=tuple(float(one.gain.mean() - one.free) for one in curves),
    )  # fmt: skip


def _timed(work: Callable[[], Any], rounds: int) -> tuple[tuple[float, ...], Any]:
    """CPU seconds of each round after a warm-up, and the last result."""
    result, times = work(), []
    for _ in range(rounds):
        started = time.process_time()
        result = work()
        times.append(time.process_time() - started)
    return tuple(times), result


# Against SGD ----------------------------------------------------------------------------------


def sgd(scale: Scale) -> Iterator[Check]:
    """The whole curve by least squares and by epochs of mini-batches, on the same observations.

    Its rows are those that plain PyTorch trains one data set at a time, as one writes it; beside it
    stands the library's own SGD, which trains data sets side by side with analytic derivatives.
    """
    for gate, expert, _ in FAMILIES:
        setting = RateSetting(gate, expert, sizes=scale.sizes, replicates=scale.replicates)
        truth, family = draw_truth(setting), setting.family
        curve = [Observed.draw(setting, n, place) for place, n in enumerate(setting.sizes)]
        rng = torch.Generator().manual_seed(1)
        begin = torch.stack([start(setting, truth, rng) for _ in range(setting.replicates)])
        begins, bounds = begin.repeat(len(curve), 1), box(setting, truth)
        fit = partial(minimise, family, sigma=setting.sigma, box=bounds)
        times, best = _timed(lambda: fit(sufficient(curve), begins), scale.rounds)  # noqa: B023
        ours = statistics.median(times)

        count, recipe = scale.sgd_replicates, StochasticRecipe("sgd", 0.1, epochs=scale.epochs)
        samples = [one.samples(count) for one in curve]
        whole_curve = setting.replicates / count
        started = time.process_time()
        trained = [
            torch.stack(
                [
                    plain_sgd(family, x, y, theta, recipe, seed)
                    for seed, (x, y, theta) in enumerate(
                        zip(one.inputs_BQd, one.observations_BQ, begin, strict=False)
                    )
                ]
            )
            for one in samples
        ]
        plain = (time.process_time() - started) * whole_curve
        started = time.process_time()
        for one in samples:
            paper_mode(family, one, begin[:count], sigma=setting.sigma, recipe=recipe)
        batched = (time.process_time() - started) * whole_curve

        ends = [
            chi2(family, one, theta, setting.sigma)
            for one, theta in zip(samples, trained, strict=True)
        ]
        excess = torch.stack(ends) - best.chi2_B.reshape(len(curve), -1)[:, :count]
        name = f"{gate} {expert}, curve of {setting.replicates} x {len(curve)}"
        yield Check(
            "sgd", f"{name}, CPU of {scale.epochs} epochs over ours", plain / ours, "x", 300,
            at_least=True,
            said=f"{plain:.0f} s (of {count} replicates, in proportion) and {ours:.2f} s with the "
            f"sums over rows; our own SGD {batched:.0f} s, {batched / ours:.0f}x",
            values=times,
        )  # fmt: skip
        medians = excess.median(dim=1).values
        yield Check(
            "sgd", f"{name}, chi2 of SGD above ours at n = {setting.sizes[-1]}",
            float(medians[-1]), "chi2", 1.0, at_least=True,
            said="medians over n: " + ", ".join(f"{value:.3g}" for value in medians),
            values=tuple(medians.tolist()),
        )  # fmt: skip


# Raw data -------------------------------------------------------------------------------------


def raw(scale: Scale) -> Iterator[Check]:
    """CPU time and peak memory of one fit to raw observations, in a new process."""
    for gate, expert, _ in FAMILIES:
        command = [sys.executable, "-m", "benchmarks.raw", gate, expert, str(scale.raw_n)]
        child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if child.returncode != 0:
            raise OSError(f"raw {gate} {expert}: {child.stderr.strip().rpartition(chr(10))[2]}")
        measured = json.loads(child.stdout)
        name = f"{gate} {expert}, n = {scale.raw_n:.0e}"
        cells, rows = measured["iterations"]
        said = f"{cells} iterations on cells, {rows} on rows, converged: {measured['converged']}"
        yield Check("raw", f"{name}, time", measured["seconds"], "CPU s", 8.0, said=said)
        yield Check(
            "raw", f"{name}, peak of the process", measured["bytes"] / GIB, "GiB", 1e9 / GIB
        )


# Two cores ------------------------------------------------------------------------------------


def cores(scale: Scale) -> Iterator[Check]:
    """The same tasks with one worker and with two, both warm, in alternation.

    A machine whose speed drifts would otherwise give one of them the better minutes.
    """
    if usable_cores() < 2:
        return
    settings = [
        RateSetting("softmax", "gelu", sizes=scale.sizes, replicates=scale.replicates, seed=seed)
        for seed in range(scale.tasks)
    ]
    with process_pool(1) as one, process_pool(2) as two:
        _warm(one, 1)
        _warm(two, 2)
        gains = []
        for _ in range(scale.rounds):
            alone, together = _wall(one, settings), _wall(two, settings)
            gains.append(alone / together)
    yield Check(
        "cores", f"{scale.tasks} curves, speed of two workers over one", statistics.median(gains),
        "x", 2 / 1.15, at_least=True,
        said=f"{len(gains)} rounds, from {min(gains):.2f} to {max(gains):.2f}",
    )  # fmt: skip


def _wall(pool: Executor, settings: list[RateSetting]) -> float:
    started = time.perf_counter()
    list(pool.map(measure, settings))
    return time.perf_counter() - started


def _warm(pool: Executor, workers: int) -> None:
    """Wait until every worker has started, imported its modules and found the truth."""
    small = RateSetting("softmax", "gelu", sizes=(100,), replicates=1)
    list(pool.map(_held, [small] * workers))


def _held(setting: RateSetting) -> None:
    measure(setting)
    # Long enough for the others to start, so that no worker runs two of these tasks.
    time.sleep(5)


# All of it ------------------------------------------------------------------------------------

SUITES: dict[str, Callable[[Scale], Iterator[Check]]] = {
    "curve": curve, "sgd": sgd, "raw": raw, "wide": wide, "cores": cores,
}  # fmt: skip


def checks(only: tuple[str, ...], scale: Scale) -> Iterator[Check]:
    """The chosen checks, by default all, one after another on one thread.

    Raises:
        ValueError: a suite that there is not.
    """
    for name in only:
        if name not in SUITES:
            raise ValueError(f"--only must be of {', '.join(SUITES)}, got {name}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in only or SUITES:
            for check in SUITES[name](scale):
                yield replace(check, stamp=_stamp())
    finally:
        torch.set_num_threads(threads)


def _stamp() -> dict[str, Any]:
    return {
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read(path: Path) -> list[Check]:
    """The checks in a file from ``write``."""
    with reading(path):
        rows = [unsealed(json.loads(line)) for line in path.read_text().splitlines()]
    return [Check(**{name: row[name] for name in row if name != "met"}) for row in rows]


def write(path: Path, checks: Iterable[Check]) -> None:
    """Write one line of JSON for each check; it replaces the older one of its name."""
    old = path.read_text().splitlines() if path.exists() else []
    with reading(path):
        lines = {unsealed(json.loads(line))["name"]: line for line in old}
    for check in checks:
        lines[check.name] = json.dumps(sealed({**asdict(check), "met": check.met}))
    write_whole(path, "".join(line + "\n" for line in lines.values()).encode())
