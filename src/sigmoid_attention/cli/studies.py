"""`sigmoid-attention studies run|list|report`: every study, and tests of published claims."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.study_options import (
    CLAIMS_OUT,
    ListStudiesOptions,
    ReportStudiesOptions,
    RunStudiesOptions,
    StudiesOptions,
)
from sigmoid_attention.lab.archive import Archive
from sigmoid_attention.lab.page import Answer, answer, publish, write
from sigmoid_attention.lab.study import Study
from sigmoid_attention.lab.sweep import sweep
from sigmoid_attention.studies.registry import (
    COMMAND_STUDIES,
    CommandStudy,
    claim_names,
    select_claims,
)
from sigmoid_attention.training.files import Damaged
from sigmoid_attention.training.terminal import tell, terminal, warn

COMMAND = "sigmoid-attention studies run {name}"
SHOWN = ("cell", "claim", "measured", "verdict", "because")
PADDING = (0, 2, 0, 0)
WIDTH_OF_A_FILE = 160
FAILED = 2


def studies(options: StudiesOptions) -> int:
    """Run the chosen action; return its exit code."""
    action = options.action
    match action:
        case RunStudiesOptions():
            return run(action)
        case ListStudiesOptions():
            return list_studies(action)
        case ReportStudiesOptions():
            return report(action)


def run(options: RunStudiesOptions) -> int:
    """Run the missing tasks and show the findings; 2 if a task raised an exception, else 0."""
    if not options.names and not options.all:
        raise ValueError(f"name: give one or more of {', '.join(claim_names())}, or --all")
    chosen = select_claims(() if options.all else options.names)
    answers, code = run_and_show(chosen, options.out, options.workers, quiet=options.json)
    if options.json:
        print_json({"studies": [as_json(complete) for complete in answers]})
    return code


def run_and_show(
    studies: Sequence[Study], out: Path, workers: int | None, *, quiet: bool = False
) -> tuple[list[Answer], int]:
    """Run studies, print the findings of the complete ones, and name the tasks that failed."""
    failures = sweep(studies, out, workers=workers, console=terminal(errors=True))
    archive = Archive(out)
    answers = [complete for study in studies if (complete := answer(study, archive))]
    if not quiet:
        for complete in answers:
            show(complete, terminal())
    for sentence in failures:
        warn(f"sigmoid-attention: {sentence}")
    return answers, FAILED if failures else 0


def as_json(complete: Answer) -> dict[str, Any]:
    """A study's findings, for JSON."""
    study = complete.study
    described = {name: getattr(study, name) for name in ("name", "title", "claim", "source")}
    return described | {"findings": list(complete.findings), "tasks": complete.tasks}


def show(complete: Answer, console: Console) -> None:
    """Print a study's findings as a table."""
    table = Table(title=complete.study.title, title_justify="left", box=None, padding=PADDING)
    for heading in SHOWN:
        table.add_column(heading)
    for finding in complete.findings:
        table.add_row(*(getattr(finding, heading) for heading in SHOWN))
    _print(table, console)


def list_studies(options: ListStudiesOptions) -> int:
    """Print every study, the command that runs it, and how much of it the folder holds."""
    entries = [_command_entry(study, options.out) for study in COMMAND_STUDIES]
    archive = Archive(options.out or CLAIMS_OUT)
    entries += [_claim_entry(study, archive) for study in select_claims(())]
    if options.json:
        print_json({"studies": entries})
        return 0
    table = Table(box=None, padding=PADDING)
    for heading in ("study", "question or claim", "command", "held"):
        table.add_column(heading, no_wrap=heading == "study")
    for entry in entries:
        tasks, done = entry["tasks"], entry["done"]
        held = entry["held"] if tasks is None else f"{done} of {tasks} tasks"
        question = f"{entry['title']} ({entry['source']})" if entry["source"] else entry["title"]
        table.add_row(entry["name"], question, entry["command"], held)
    _print(table, terminal())
    return 0


def _command_entry(study: CommandStudy, out: Path | None) -> dict[str, Any]:
    try:
        held = study.state(out or Path("runs", study.name))
    except Damaged as error:
        warn(str(error))
        held = "damaged"
    described = {"name": study.name, "title": study.question, "source": ""}
    return described | {"command": study.command, "held": held, "tasks": None, "done": None}


def _claim_entry(study: Study, archive: Archive) -> dict[str, Any]:
    tasks, done = count_tasks(study, archive)
    return {
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "command": COMMAND.format(name=study.name),
        "held": "complete" if done == tasks else "begun" if done else "none",
        "tasks": tasks,
        "done": done,
    }


def report(options: ReportStudiesOptions) -> int:
    """Write the page and figures of the complete studies; ``ValueError`` if there are none."""
    archive = Archive(options.out)
    answers = []
    for study in select_claims(options.names):
        complete = answer(study, archive)
        if complete:
            answers.append(complete)
            continue
        tasks, done = count_tasks(study, archive)
        problem = f"{study.name} is not complete in {options.out}: {done} of {tasks} tasks are done"
        if options.names:
            raise ValueError(f"{problem} ({COMMAND.format(name=study.name)} goes on)")
        if done:
            warn(f"left out: {problem}")
    if not answers:
        raise ValueError(f"out: {options.out} holds no complete study; start with studies run")
    pages = [publish(answers, options.docs, COMMAND, select_claims(()))] if options.docs else []
    pages.append(write(answers, options.out / "report", COMMAND))
    if options.json:
        print_json({"studies": [as_json(complete) for complete in answers], "reports": pages})
        return 0
    for page in pages:
        tell(f"report: {page}")
    return 0


def count_tasks(study: Study, archive: Archive) -> tuple[int, int]:
    """The number of tasks of a study, and of those that are done; warns of damaged files."""
    tasks = study.tasks()
    return len(tasks), len(tasks) - sum(1 for _ in archive.missing(tasks, warn))


def _print(table: Table, console: Console) -> None:
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    console.print(table)
    console.print()
