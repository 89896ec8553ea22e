"""The report of studies: a Markdown page with every finding, and one figure per study.

The same rows give the same bytes, so a page under version control changes only with its rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sigmoid_attention.lab.archive import Archive, results_of
from sigmoid_attention.lab.figure import styled, svg
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.lab.study import Finding, Results, Study
from sigmoid_attention.training.files import Damaged, write_whole

PAGE = "studies.md"
# In a document, only the text between these markers is generated.
BEGIN, END = "<!-- studies -->", "<!-- /studies -->"
ANCHOR = '<a id="'
EARLIER = (
    "**Earlier rows.** This section was measured and judged by the rule below. The study has a "
    "newer rule and has not been measured by it."
)
HEADINGS = ("cell", "claim", "measured", "verdict", "because", "controls")


@dataclass(frozen=True)
class Answer:
    """The results and findings of a study with all tasks finished.

    ``machines`` and ``cpu_seconds`` are of the tasks, which may have run on several machines.
    """

    study: Study
    results: Results
    findings: Sequence[Finding]
    tasks: int
    machines: Sequence[str]
    cpu_seconds: float


def answer(study: Study, archive: Archive) -> Answer | None:
    """The study's findings from its rows; None while tasks are missing: its rule needs all rows."""
    tasks = study.tasks()
    try:
        tables = archive.tables(tasks)
    except (FileNotFoundError, Damaged):
        return None
    results = results_of(tasks, tables)
    machines, seconds = set(), 0.0
    for table in tables.values():
        machines |= {_machine(text) for text in table["machine"].unique().to_pylist()}
        seconds += sum(table["cpu_seconds"].unique().to_pylist())
    return Answer(study, results, study.judge(results), len(tasks), sorted(machines), seconds)


def write(answers: Sequence[Answer], folder: Path, command: str) -> Path:
    """Write the page and the figures of ``answers`` into ``folder``; return the path of the page.

    Args:
        command: the command that measures a study; ``{name}`` stands for its name.

    Raises:
        OSError: a file could not be written.
    """
    _draw(answers, folder)
    title = "# Claims of the papers, put to the test"
    write_whole(folder / PAGE, f"{title}\n\n{markdown(answers, command)}".encode())
    return folder / PAGE


def publish(
    answers: Sequence[Answer], document: Path, command: str, studies: Sequence[Study] = ()
) -> Path:
    """Write the page between the markers of a document, and the figures in a folder of its name.

    Args:
        studies: all that the document may hold, in their order. The section of a study without an
            answer stays as it is, with a note if the study's rule is another one by now.

    Raises:
        ValueError: the document does not exist, or has no markers.
        OSError: a file could not be written.
    """
    before, after = split_at_markers(document, BEGIN, END)
    old = document.read_text(encoding="utf-8").removeprefix(before).removesuffix(after)
    _draw(answers, document.with_suffix(""))
    made = markdown(answers, command, f"{document.stem}/", _kept(old, answers, studies))
    write_whole(document, f"{before}\n{made}{after}".encode())
    return document


@dataclass(frozen=True)
class Kept:
    """A study's line of the overview and its section, from an earlier page."""

    line: Sequence[str]
    section: str


def _kept(old: str, answers: Sequence[Answer], studies: Sequence[Study]) -> dict[str, Kept | None]:
    """What an earlier page has of each study without an answer; None for the others, in order."""
    sections = {part.split('"')[0]: part for part in old.split(ANCHOR)[1:]}
    answered = {each.study.name for each in answers}
    kept: dict[str, Kept | None] = {}
    for study in studies:
        if study.name in answered:
            kept[study.name] = None
        elif study.name in sections:
            line = next(line for line in old.splitlines() if f"](#{study.name})" in line)
            cells = line.strip("| ").split(" | ")[:3]
            section = f"{ANCHOR}{sections[study.name]}".strip()
            if study.rule not in section and EARLIER not in section:
                section = section.replace("**Rule.** ", f"{EARLIER}\n\n**Rule.** ")
            kept[study.name] = Kept([*cells, "not counted"], section)
    return kept


def _draw(answers: Sequence[Answer], folder: Path) -> None:
    for each in answers:
        with styled():
            figure = each.study.draw(each.results)
        write_whole(folder / _figure(each.study), svg(figure, each.study.title))


def markdown(
    answers: Sequence[Answer],
    command: str,
    figures: str = "",
    kept: Mapping[str, Kept | None] | None = None,
) -> str:
    """An overview, then a section for each study; ``figures`` is their folder.

    ``kept`` has the order of the studies, and what stays of those without an answer.
    """
    by_name = {each.study.name: each for each in answers}
    overview, sections = [], []
    for name, earlier in (kept or dict.fromkeys(by_name)).items():
        if earlier:
            overview.append(earlier.line)
            sections.append(earlier.section)
        else:
            overview.append(_line(by_name[name]))
            sections.append(_section(by_name[name], command.format(name=name), figures))
    parts = [
        "Made by `sigmoid-attention` from the rows of the studies: what is typed in here is lost. "
        'Every verdict is computed by the rule that stands above its table. "Wrong by chance" is '
        "the number of verdicts that the luck of the draw may turn, summed over the lines that an "
        "interval decides, each at the true value where this is likeliest.",
        _table(("study", "claim of", "verdicts", "wrong by chance, at most"), overview),
        *sections,
    ]
    return "\n\n".join(parts) + "\n"


def _line(answer: Answer) -> list[str]:
    return [
        f"[{answer.study.title}](#{answer.study.name})",
        answer.study.source,
        _counts(answer.findings),
        _by_chance(answer.findings),
    ]


def _section(answer: Answer, command: str, figures: str) -> str:
    study = answer.study
    rows = [[getattr(finding, name) for name in HEADINGS] for finding in answer.findings]
    parts = [
        f'{ANCHOR}{study.name}"></a>\n\n## {study.title}',
        f"**Claim.** {study.claim}",
        f"**Source.** {study.source}",
        f"**Rule.** {study.rule}",
        f"**Command.** `{command}` ({answer.tasks} tasks, {answer.cpu_seconds:,.0f} CPU seconds on "
        f"{' and '.join(answer.machines)})",
        _table(HEADINGS, rows),
        *((study.remark(answer.results),) if study.remark else ()),
        f"![{study.title}]({figures}{_figure(study)})",
    ]
    return "\n\n".join(parts)


def _figure(study: Study) -> str:
    return f"{study.name}.svg"


def _machine(text: str) -> str:
    machine = json.loads(text)
    return f"{machine['processor']} ({machine['device']}, {machine['cores']} cores)"


def _counts(findings: Sequence[Finding]) -> str:
    """The number of each verdict, the most frequent first."""
    verdicts = [finding.verdict for finding in findings]
    by_count = sorted(set(verdicts), key=lambda verdict: (-verdicts.count(verdict), verdict))
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in by_count)


def _by_chance(findings: Sequence[Finding]) -> str:
    """The expected number of verdicts that are wrong by chance, of those that intervals decide."""
    chances = [finding.chance for finding in findings if finding.chance is not None]
    return f"{sum(chances):.2f} of {len(chances)}" if chances else "no line by an interval"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """The text of a table cell: on one line, with escaped bars."""
    return " ".join(text.split()).replace("|", r"\|")
