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
from benchmarks import options as costs
from benchmarks.gpu.command import Results, gpu_results, measure_gpu
from benchmarks.gpu.measures import with_ours
from benchmarks.listing import checks_table, listing, standings_table
from benchmarks.measure import guessed_seconds, measure
from benchmarks.memory import ROOT
from benchmarks.rows import Key, Row, merged, read, results_file, write
from benchmarks.split import split_block
from benchmarks.stamp import same_conditions, stamp
from benchmarks.suites import SUITES, Choice, Suite, Task, chosen
from benchmarks.table import checks_block, cpu_block, with_block
from benchmarks.targets import GPU_TARGETS, MET, read_targets, standing
from sigmoid_attention.cli import streams
from sigmoid_attention.cli.lists import names, whole_numbers
from sigmoid_attention.training.environment import usable_cores
from sigmoid_attention.training.files import write_whole
from sigmoid_attention.training.progress import StudyProgress

NOT_ALL_MET, BAD_INPUT, INTERRUPTED = 1, 2, 130
# Columns of a table that is not printed into a terminal.
WIDE = 200
CPU_PAGE, IMAGE = "docs/benchmarks.md", "docs/benchmarks/cpu.svg"
THEORY_PAGE = "docs/theory-results.md"
MODELS_PAGE, OPTIONS_PAGE = "docs/integrations.md", "docs/centred-keys.md"


@dataclass(frozen=True)
class Cpu:
    """Measure the operator and its peers on this machine's processor.

    Lists are separated by commas. Without a list everything in the suite is measured. All of it
    takes about an hour on two cores; nothing else should run at the same time.
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
    """Numbers of threads; by default one, and all cores."""
    quick: bool = False
    """One small shape of everything and few rounds: shows that it runs, not how fast it is."""
    long: bool = False
    """Also measure the headline, which takes minutes."""
    out: Path | None = None
    """A .jsonl file, or a folder for one that is named after the processor. Each row measured now
    replaces the older one. By default nothing is written."""
    resume: bool = False
    """Skip the rows of this machine, these versions and this source that OUT has already."""


@dataclass(frozen=True)
class Gpu:
    """Measure the GPU operators, their errors and their peers on this machine's NVIDIA GPU."""

    only: str = ""
    """readings (of the device itself), errors, speed; by default everything."""
    minutes: float = 8.0
    """The time limit; the rest is left for the next run."""
    out: Path | None = None
    """A .jsonl file, or a folder for one that is named after the GPU; readings are written beside
    it."""
    resume: bool = False
    """Skip the rows of this GPU, driver, versions and source that OUT has already."""


@dataclass(frozen=True)
class Targets:
    """Print which targets the measured rows meet; exit code 1 unless all are met."""

    results: Annotated[Path, tyro.conf.Positional]
    """A folder with results of this machine's processor and of any GPUs, or a .jsonl file."""


@dataclass(frozen=True)
class Publish:
    """Write docs/benchmarks.md, docs/gpu.md, their pictures, the costs of integrations, and the
    split of the time in docs/theory-results.md, from measured rows."""

    results: Annotated[Path, tyro.conf.Positional]
    """A folder with results of this machine's processor and of any GPUs, or a .jsonl file."""


@dataclass(frozen=True)
class Mixtures:
    """Measure the targets of the mixtures laboratory; exit code 1 unless all are met.

    All of it takes about a quarter of an hour on one core; nothing else should run at the same
    time.
    """

    only: str = ""
    """curve, sgd, raw, wide, cores; by default everything."""
    quick: bool = False
    """A little of everything: shows that it runs, not how fast it is. The exit code is then 0."""
    out: Path | None = None
    """A .jsonl file, or a folder for one that is named after the processor. Each check measured
    now replaces the older one of its name."""


@dataclass(frozen=True)
class Integrations:
    """Measure the targets of the integration with transformers; exit code 1 unless all are met.

    A call through transformers is compared with a call of the operator, and generation with a
    cache with the same model and sdpa. It takes about ten minutes; nothing else should run at the
    same time.
    """

    only: str = ""
    """overhead, generation; by default everything."""
    quick: bool = False
    """A little of everything: shows that it runs, not how fast it is. The exit code is then 0."""
    out: Path | None = None
    """A .jsonl file, or a folder for one that is named after the processor. Each check measured
    now replaces the older one of its name."""


@dataclass(frozen=True)
class Options:
    """Measure what options cost beside the same work without them; exit code 1 unless all targets
    are met.

    A training step and a decoding step with centred keys, and a forward pass with the mass of each
    row. It takes about ten minutes; nothing else should run at the same time.
    """

    only: str = ""
    """training, decoding, mass; by default everything."""
    quick: bool = False
    """A little of everything: shows that it runs, not how fast it is. The exit code is then 0."""
    out: Path | None = None
    """A .jsonl file, or a folder for one that is named after the processor. Each check measured
    now replaces the older one of its name."""


Command = (
    Annotated[Cpu, tyro.conf.subcommand("cpu")]
    | Annotated[Gpu, tyro.conf.subcommand("gpu")]
    | Annotated[Mixtures, tyro.conf.subcommand("mixtures")]
    | Annotated[Integrations, tyro.conf.subcommand("integrations")]
    | Annotated[Options, tyro.conf.subcommand("options")]
    | Annotated[Targets, tyro.conf.subcommand("targets")]
    | Annotated[Publish, tyro.conf.subcommand("publish")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is printed as one sentence."""
    options = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="python -m benchmarks",
        args=argv,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    streams.prepare()
    try:
        match options:
            case Cpu():
                return cpu(options)
            case Gpu():
                return gpu(options)
            case Mixtures():
                return mixtures(options)
            case Integrations():
                return integrations(options)
            case Options():
                return costs_of_options(options)
            case Targets():
                return targets(options)
            case Publish():
                return publish(options)
    except KeyboardInterrupt:
        print("interrupted; --resume continues after the rows in OUT", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return BAD_INPUT


def cpu(options: Cpu) -> int:
    """Measure the chosen cases, print the rows, and write them into OUT."""
    choice = Choice(
        only=_chosen(options.only),
        dtypes=_chosen(options.dtype),
        lengths=_positive("--length", options.length),
        dims=_positive("--dim", options.dim),
        masks=_chosen(options.mask),
        peers=_chosen(options.peers),
        quick=options.quick,
        long=options.long,
    )
    threads = _positive("--threads", options.threads) or tuple(sorted({1, usable_cores()}))
    if options.resume and not options.out:
        raise ValueError("--resume: needs --out")
    out = results_file(options.out, "cpu") if options.out else None
    suite = SUITES["cpu"]
    rows = run(suite, chosen(suite, choice), threads, out, resume=options.resume)
    _print(listing(rows))
    return 0


def gpu(options: Gpu) -> int:
    """Measure as much as the time limit allows, print the rows, and write them into OUT."""
    if options.resume and not options.out:
        raise ValueError("--resume: needs --out")
    rows, left = measure_gpu(
        _chosen(options.only), options.out, options.minutes, resume=options.resume
    )
    _print(listing(rows))
    if left:
        print(f"no time was left for {len(left)} of the plan; --resume continues with them")
    return 0


def run(
    suite: Suite, tasks: Sequence[Task], threads: Sequence[int], out: Path | None, *, resume: bool
) -> list[Row]:
    """Measure every task with every number of threads; write its rows to `out` after each."""
    kept = read(out) if out else {}
    todo = [(task, count) for task in tasks for count in threads]
    if resume:
        now = stamp(suite.device)
        todo = [unit for unit in todo if not _has(kept, now, *unit)]
    measured: list[Row] = []
    guess = sum(guessed_seconds(task) for task, _ in todo)
    with StudyProgress(guess, len(todo), Console(stderr=True)) as progress:
        for task, count in todo:
            progress.begin(f"{task.case}, threads {count}", guessed_seconds(task))
            new = measure(suite, task, count)
            progress.end()
            measured += new
            if out:
                kept = merged(kept, new)
                write(out, kept)
    return measured


def mixtures(options: Mixtures) -> int:
    scale = laboratory.QUICK if options.quick else laboratory.USUAL
    return _judged(options, "mixtures", laboratory.checks(_chosen(options.only), scale))


def integrations(options: Integrations) -> int:
    # Only this suite needs transformers.
    from benchmarks import integrations as models

    scale = models.QUICK if options.quick else models.USUAL
    return _judged(options, "integrations", models.checks(_chosen(options.only), scale))


def costs_of_options(options: Options) -> int:
    scale = costs.QUICK if options.quick else costs.USUAL
    return _judged(options, "options", costs.checks(_chosen(options.only), scale))


def _judged(
    options: Mixtures | Integrations | Options, name: str, checks: Iterable[laboratory.Check]
) -> int:
    """Measure the checks, write each into OUT, and print a table of them."""
    out = results_file(options.out, name) if options.out else None
    measured: list[laboratory.Check] = []
    for check in checks:
        measured.append(check)
        if out:
            laboratory.write(out, measured)
    _print(checks_table(measured))
    return 0 if options.quick or all(check.met for check in measured) else NOT_ALL_MET


def targets(options: Targets) -> int:
    """Print the verdict on every target of the processor and of every GPU."""
    gpus = gpu_results(options.results)
    rows = _processor_rows(options.results, gpus)
    devices = {"processor": (read_targets(), rows)} if rows else {}
    for device, (gpu_rows, _) in gpus.items():
        devices[device] = read_targets(GPU_TARGETS), with_ours(gpu_rows)
    met = total = 0
    for device, (device_targets, device_rows) in devices.items():
        standings = [standing(target, device_rows) for target in device_targets]
        print(f"{device}:")
        _print(standings_table(standings))
        met += sum(s.verdict == MET for s in standings)
        total += len(standings)
    print(f"{met} of {total} targets met")
    return 0 if met == total else NOT_ALL_MET


def publish(options: Publish) -> int:
    """Draw the figures, write the tables of the docs, and the page on GPUs."""
    # Only this command needs matplotlib, which a machine for measurements may lack.
    from benchmarks.gpu.page import gpu_pages
    from benchmarks.plot import plot

    gpus = gpu_results(options.results)
    rows = _processor_rows(options.results, gpus)
    files = gpu_pages(gpus)
    if rows:
        files[IMAGE] = plot(rows)
        text = (ROOT / CPU_PAGE).read_text(encoding="utf-8")
        block = cpu_block(rows, IMAGE.removeprefix("docs/"))
        files[CPU_PAGE] = with_block(text, block).encode()
        text = (ROOT / THEORY_PAGE).read_text(encoding="utf-8")
        files[THEORY_PAGE] = with_block(text, split_block(rows)).encode()
    for suite, page in (("integrations", MODELS_PAGE), ("options", OPTIONS_PAGE)):
        results = results_file(options.results, suite)
        if results != options.results and results.exists():
            text = (ROOT / page).read_text(encoding="utf-8")
            files[page] = with_block(text, checks_block(laboratory.read(results))).encode()
    for path, content in files.items():
        write_whole(ROOT / path, content)
    return 0


def _has(rows: dict[Key, Row], now: dict[str, Any], task: Task, threads: int) -> bool:
    """True if there is a row of every peer, from the same conditions and with enough rounds."""
    of_peers = [rows.get((task.case, peer, threads)) for peer in task.peers]
    return all(
        row
        and same_conditions(row.stamp, now)
        and (row.refused or len(row.costs) >= task.budget.least)
        for row in of_peers
    )


def _processor_rows(results: Path, gpus: dict[str, Results]) -> dict[Key, Row]:
    """The rows of this machine's processor; none if there are only rows of a GPU."""
    path = results_file(results, "cpu")
    if not (path.exists() or any(rows for rows, _ in gpus.values())):
        raise ValueError(f"there are no results at {path}; make bench-cpu measures them")
    return {key: row for key, row in read(path).items() if row.threads > 0}


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else WIDE
    Console(width=width).print(table)


def _chosen(text: str) -> tuple[str, ...]:
    """The names in an option; none if it is not given."""
    return tuple(names(text)) if text else ()


def _positive(option: str, text: str) -> tuple[int, ...]:
    """The numbers in an option; none if it is not given."""
    numbers = tuple(whole_numbers(option, text)) if text else ()
    if any(number < 1 for number in numbers):
        raise ValueError(f"{option} must be positive, got {text!r}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
