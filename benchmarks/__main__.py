"""`python -m benchmarks`: measure, judge by the targets, publish."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import mixtures as laboratory
from benchmarks.gpu.command import Results, gpu_results, measure_gpu
from benchmarks.gpu.measures import with_ours
from benchmarks.gpu.page import gpu_pages
from benchmarks.listing import checks_table, listing, standings_table
from benchmarks.measure import guessed_seconds, measure
from benchmarks.memory import ROOT
from benchmarks.plot import plot
from benchmarks.rows import Key, Row, merged, read, results_file, write
from benchmarks.stamp import same_conditions, stamp
from benchmarks.suites import SUITES, Choice, Suite, Task, chosen
from benchmarks.table import checks_block, readme_block, with_block
from benchmarks.targets import GPU_TARGETS, MET, read_targets, standing
from sigmoid_attention.cli import streams
from sigmoid_attention.lab.progress import StudyProgress
from sigmoid_attention.training.environment import usable_cores
from sigmoid_attention.training.files import write_whole

NOT_ALL_MET, BAD_INPUT, INTERRUPTED = 1, 2, 130
# Where no terminal says how wide it is.
WIDE = 200
IMAGE = "docs/benchmarks/cpu.svg"
MODELS_PAGE = "docs/integrations.md"


@dataclass(frozen=True)
class Cpu:
    """Measure the operator and its peers on this machine's processor.

    Lists are separated by commas; what is not given is everything that the suite has. All of it
    takes about an hour on two cores; nothing else should run meanwhile.
    """

    only: str = ""
    """Operations: gemm, forward, forward+backward, decode, alibi-forward, alibi-forward+backward,
    memory-forward, memory-forward+backward, headline."""
    dtype: str = ""
    """fp32, bf16, fp16."""
    length: str = ""
    """Numbers of keys."""
    dim: str = ""
    """Head dims."""
    mask: str = ""
    """full, causal."""
    peers: str = ""
    """sdpa, flex, eager-softmax, eager-sigmoid, tiled, dense, ours, mm, onednn."""
    threads: str = ""
    """Numbers of threads; one and all cores if not given."""
    quick: bool = False
    """One small shape of everything and few rounds: whether it works, not how fast it is."""
    long: bool = False
    """Also the headline, which takes minutes."""
    out: Path | None = None
    """A .jsonl file, or a folder in which it is named after the processor. Its rows are replaced
    by those measured now, one by one. Nothing is written if not given."""
    resume: bool = False
    """Leave out what OUT has already from this machine, these versions and this source."""


@dataclass(frozen=True)
class Gpu:
    """Measure the GPU operators, their errors and their peers on this machine's NVIDIA GPU."""

    only: str = ""
    """readings (of the device itself), errors, speed; everything if not given."""
    minutes: float = 8.0
    """Then it ends; what was not done is left for the next run."""
    out: Path | None = None
    """A .jsonl file, or a folder in which it is named after the GPU; readings lie beside it."""
    resume: bool = False
    """Leave out what OUT has already from this GPU, this driver, these versions and this source."""


@dataclass(frozen=True)
class Targets:
    """Say which targets the measured rows meet; exit code 1 unless it is all."""

    results: Annotated[Path, tyro.conf.Positional]
    """The folder of results: of this machine's processor, and of whatever GPU. Or a .jsonl file."""


@dataclass(frozen=True)
class Publish:
    """Write the README's table, docs/gpu.md, their pictures and the costs of integrations from
    measured rows."""

    results: Annotated[Path, tyro.conf.Positional]
    """The folder of results: of this machine's processor, and of whatever GPU. Or a .jsonl file."""


@dataclass(frozen=True)
class Mixtures:
    """Measure what the mixtures laboratory must reach; exit code 1 unless it reaches all of it.

    All of it takes about a quarter of an hour on one core; nothing else should run meanwhile.
    """

    only: str = ""
    """curve, sgd, raw, wide, cores; everything if not given."""
    quick: bool = False
    """Little of everything: whether it works, not how fast it is. The exit code is then 0."""
    out: Path | None = None
    """A .jsonl file, or a folder in which it is named after the processor. Checks measured now
    take the place of those of their names."""


@dataclass(frozen=True)
class Integrations:
    """Measure what the integration with transformers must reach; exit code 1 unless it does.

    A call through transformers against the operator's own, and generation with a cache against the
    same model by its own sdpa path. About ten minutes; nothing else should run meanwhile.
    """

    only: str = ""
    """overhead, generation; everything if not given."""
    quick: bool = False
    """Little of everything: whether it works, not how fast it is. The exit code is then 0."""
    out: Path | None = None
    """A .jsonl file, or a folder in which it is named after the processor. Checks measured now
    take the place of those of their names."""


Command = (
    Annotated[Cpu, tyro.conf.subcommand("cpu")]
    | Annotated[Gpu, tyro.conf.subcommand("gpu")]
    | Annotated[Mixtures, tyro.conf.subcommand("mixtures")]
    | Annotated[Integrations, tyro.conf.subcommand("integrations")]
    | Annotated[Targets, tyro.conf.subcommand("targets")]
    | Annotated[Publish, tyro.conf.subcommand("publish")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; what went wrong is one sentence."""
    asked = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="python -m benchmarks",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    streams.prepare()
    try:
        match asked:
            case Cpu():
                return cpu(asked)
            case Gpu():
                return gpu(asked)
            case Mixtures():
                return mixtures(asked)
            case Integrations():
                return integrations(asked)
            case Targets():
                return targets(asked)
            case Publish():
                return publish(asked)
    except KeyboardInterrupt:
        print("interrupted; with --resume it goes on from the rows that OUT has", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return BAD_INPUT


def cpu(asked: Cpu) -> int:
    """Measure what was asked for, print it, and keep it in OUT."""
    choice = Choice(
        only=_names(asked.only),
        dtypes=_names(asked.dtype),
        lengths=_numbers("--length", asked.length),
        dims=_numbers("--dim", asked.dim),
        masks=_names(asked.mask),
        peers=_names(asked.peers),
        quick=asked.quick,
        long=asked.long,
    )
    threads = _numbers("--threads", asked.threads) or tuple(sorted({1, usable_cores()}))
    if asked.resume and not asked.out:
        raise ValueError("--resume: needs --out")
    out = results_file(asked.out, "cpu") if asked.out else None
    suite = SUITES["cpu"]
    rows = run(suite, chosen(suite, choice), threads, out, resume=asked.resume)
    _print(listing(rows))
    return 0


def gpu(asked: Gpu) -> int:
    """Measure what there is time for, print it, and keep it in OUT."""
    if asked.resume and not asked.out:
        raise ValueError("--resume: needs --out")
    rows, left = measure_gpu(_names(asked.only), asked.out, asked.minutes, resume=asked.resume)
    _print(listing(rows))
    if left:
        print(f"no time was left for {len(left)} of the plan; --resume goes on with them")
    return 0


def run(
    suite: Suite, tasks: Sequence[Task], threads: Sequence[int], out: Path | None, *, resume: bool
) -> list[Row]:
    """Measure every task with every number of threads; after each `out` holds its rows too."""
    kept = read(out) if out else {}
    todo = [(task, count) for task in tasks for count in threads]
    if resume:
        now = stamp(suite.device)
        todo = [unit for unit in todo if not _has(kept, now, *unit)]
    found: list[Row] = []
    guess = sum(guessed_seconds(task) for task, _ in todo)
    with StudyProgress(guess, len(todo), Console(stderr=True)) as progress:
        for task, count in todo:
            progress.begin(f"{task.case}, threads {count}", guessed_seconds(task))
            new = measure(suite, task, count)
            progress.end()
            found += new
            if out:
                kept = merged(kept, new)
                write(out, kept)
    return found


def mixtures(asked: Mixtures) -> int:
    scale = laboratory.QUICK if asked.quick else laboratory.USUAL
    return _judged(asked, "mixtures", laboratory.checks(_names(asked.only), scale))


def integrations(asked: Integrations) -> int:
    # Only this suite needs transformers.
    from benchmarks import integrations as models

    scale = models.QUICK if asked.quick else models.USUAL
    return _judged(asked, "integrations", models.checks(_names(asked.only), scale))


def _judged(asked: Mixtures | Integrations, name: str, checks: Iterable[laboratory.Check]) -> int:
    """Measure what was asked for, keep it in OUT check by check, and print how it stands."""
    out = results_file(asked.out, name) if asked.out else None
    found: list[laboratory.Check] = []
    for check in checks:
        found.append(check)
        if out:
            laboratory.write(out, found)
    _print(checks_table(found))
    return 0 if asked.quick or all(check.met for check in found) else NOT_ALL_MET


def targets(asked: Targets) -> int:
    """Print how every target stands, of the processor and of every GPU."""
    of_gpus = gpu_results(asked.results)
    rows = _rows(asked.results, of_gpus)
    judged = {"processor": (read_targets(), rows)} if rows else {}
    for device, (found, _) in of_gpus.items():
        judged[device] = read_targets(GPU_TARGETS), with_ours(found)
    met = total = 0
    for device, (wanted, found) in judged.items():
        standings = [standing(target, found) for target in wanted]
        print(f"{device}:")
        _print(standings_table(standings))
        met += sum(s.verdict == MET for s in standings)
        total += len(standings)
    print(f"{met} of {total} targets met")
    return 0 if met == total else NOT_ALL_MET


def publish(asked: Publish) -> int:
    """Draw the pictures, put tables into README and docs, and write the page on GPUs."""
    of_gpus = gpu_results(asked.results)
    rows = _rows(asked.results, of_gpus)
    files = gpu_pages(of_gpus)
    if rows:
        files[IMAGE] = plot(rows)
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        files["README.md"] = with_block(text, readme_block(rows, IMAGE)).encode()
    models = results_file(asked.results, "integrations")
    if models != asked.results and models.exists():
        text = (ROOT / MODELS_PAGE).read_text(encoding="utf-8")
        files[MODELS_PAGE] = with_block(text, checks_block(laboratory.read(models))).encode()
    for path, content in files.items():
        write_whole(ROOT / path, content)
    return 0


def _has(rows: dict[Key, Row], now: dict[str, Any], task: Task, threads: int) -> bool:
    """Whether every peer's row is there, measured as it would be now, in as many rounds."""
    found = [rows.get((task.case, peer, threads)) for peer in task.peers]
    return all(
        row
        and same_conditions(row.stamp, now)
        and (row.refused or len(row.costs) >= task.budget.least)
        for row in found
    )


def _rows(results: Path, of_gpus: dict[str, Results]) -> dict[Key, Row]:
    """This machine's processor's; none where there are those of a GPU alone."""
    path = results_file(results, "cpu")
    if not (path.exists() or any(rows for rows, _ in of_gpus.values())):
        raise ValueError(f"there are no results at {path}; make bench-cpu measures them")
    return {key: row for key, row in read(path).items() if row.threads > 0}


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width).print(table)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in _names(text))
    except ValueError:
        raise ValueError(f"{option} must be whole numbers, got {text!r}") from None
    if any(number < 1 for number in numbers):
        raise ValueError(f"{option} must be positive, got {text!r}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
