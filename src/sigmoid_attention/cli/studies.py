"""`sigmoid-attention studies run|list|report`: claims about mixtures, put to the test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sigmoid_attention.cli.arguments import ListStudies, ReportStudies, RunStudies
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.lab.archive import Archive
from sigmoid_attention.lab.page import Answer, answer, publish, write
from sigmoid_attention.lab.study import Study
from sigmoid_attention.lab.sweep import sweep
from sigmoid_attention.studies import claims_registry
from sigmoid_attention.training.terminal import tell, terminal, warn

COMMAND = "sigmoid-attention studies run {name}"
SHOWN = ("cell", "claim", "measured", "verdict", "because")
WIDTH_OF_A_FILE = 160
FAILED = 2


def studies(action: RunStudies | ListStudies | ReportStudies) -> int:
    """The exit code of what was asked for."""
    match action:
        case RunStudies():
            return run(action)
        case ListStudies():
            return list_studies(action)
        case ReportStudies():
            return report(action)


def run(asked: RunStudies) -> int:
    """Do what is missing of the studies and show what they found; 2 if a task raised, else 0."""
    if not asked.names and not asked.all:
        there = ", ".join(claims_registry.names())
        raise ValueError(f"name: say which of {there}, or --all")
    chosen = claims_registry.chosen(() if asked.all else asked.names)
    answers, code = carry_out(chosen, asked.out, asked.workers, quiet=asked.json)
    if asked.json:
        print_json({"studies": [described(one) for one in answers]})
    return code


def carry_out(
    studies: Sequence[Study], out: Path, workers: int | None, *, quiet: bool = False
) -> tuple[list[Answer], int]:
    """Sweep over studies, print the findings of those that are complete, and name what failed."""
    failures = sweep(studies, out, workers=workers, console=terminal(errors=True))
    answers = [found for study in studies if (found := answer(study, Archive(out)))]
    for one in () if quiet else answers:
        show(one, terminal())
    for sentence in failures:
        warn(f"sigmoid-attention: {sentence}")
    return answers, FAILED if failures else 0


def described(one: Answer) -> dict[str, Any]:
    """A study's findings, for JSON."""
    study = one.study
    told = {"name": study.name, "title": study.title, "claim": study.claim, "source": study.source}
    return told | {"findings": list(one.findings), "tasks": one.tasks}


def show(one: Answer, console: Console) -> None:
    """Print a study's findings as a table."""
    table = Table(title=one.study.title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in SHOWN:
        table.add_column(heading)
    for finding in one.findings:
        table.add_row(*(getattr(finding, heading) for heading in SHOWN))
    _print(table, console)


def list_studies(asked: ListStudies) -> int:
    """Print every study with its source, and how many of its tasks are done in a folder."""
    archive = Archive(asked.out)
    rows = []
    for study in claims_registry.chosen(()):
        tasks, done = progress_of(study, archive)
        rows.append((study.name, study.title, study.source, tasks, done))
    if asked.json:
        names = ("name", "title", "source", "tasks", "done")
        print_json({"studies": [dict(zip(names, row, strict=True)) for row in rows]})
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("study", "title", "claim of"):
        table.add_column(heading)
    table.add_column("tasks", justify="right")
    table.add_column("done", justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    _print(table, terminal())
    return 0


def report(asked: ReportStudies) -> int:
    """Write the page and figures of the complete studies; ``ValueError`` where there are none."""
    archive = Archive(asked.out)
    answers = []
    for study in claims_registry.chosen(asked.names):
        found = answer(study, archive)
        if found:
            answers.append(found)
            continue
        tasks, done = progress_of(study, archive)
        said = f"{study.name} is not complete in {asked.out}: {done} of {tasks} tasks are done"
        if asked.names:
            raise ValueError(f"{said} ({COMMAND.format(name=study.name)} goes on)")
        if done:
            warn(f"left out: {said}")
    if not answers:
        raise ValueError(f"out: {asked.out} holds no complete study; start with studies run")
    pages = [publish(answers, asked.docs, COMMAND)] if asked.docs else []
    pages.append(write(answers, asked.out / "report", COMMAND))
    if asked.json:
        print_json({"studies": [described(one) for one in answers], "reports": pages})
        return 0
    for page in pages:
        tell(f"report: {page}")
    return 0


def progress_of(study: Study, archive: Archive) -> tuple[int, int]:
    """How many tasks a study has, and how many of them are done; says which files are damaged."""
    tasks = study.tasks()
    return len(tasks), len(tasks) - sum(1 for _ in archive.missing(tasks, warn))


def _print(table: Table, console: Console) -> None:
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    console.print(table)
    console.print()
