"""The report: complete studies only, a readable page, and the same bytes every time."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from sigmoid_attention.lab.archive import Archive
from sigmoid_attention.lab.page import BEGIN, EARLIER, END, answer, markdown, publish, write
from sigmoid_attention.lab.sweep import sweep
from tests.support.studies.squares_study import STUDY, study, task

COMMAND = "sigmoid-attention studies run {name}"


@pytest.fixture
def archive(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        assert sweep([STUDY], tmp_path / "out", executor=executor) == []
    return Archive(tmp_path / "out")


def test_a_study_with_tasks_to_do_has_no_answer(archive):
    assert answer(study(*STUDY.tasks(), task(9)), archive) is None


def test_the_page_has_all_that_a_reader_needs(archive):
    page = markdown([answer(STUDY, archive)], COMMAND)
    for text in (
        "## The squares",
        "**Claim.** Squares grow with the square.",
        "**Source.** arXiv 0000.00000, table 1",
        "**Rule.** A rule in words.",
        "`sigmoid-attention studies run squares` (3 tasks, ",
        "![The squares](squares.svg)",
        "| [The squares](#squares) | arXiv 0000.00000, table 1 | 2 reproduced, 1 not reproduced | "
        "no line by an interval |",
    ):
        assert text in page
    assert page.endswith("\n") and "\n\n\n" not in page


def test_a_bar_or_a_line_break_ends_no_cell(archive):
    page = markdown([answer(STUDY, archive)], COMMAND)
    (line,) = [line for line in page.splitlines() if line.startswith("| cell 1 ")]
    assert line == (r"| cell 1 | n^2 \| always | 0.67 | reproduced | of the rows | 1 truths |")


def test_the_time_is_what_all_tasks_took(archive):
    page = answer(STUDY, archive)
    seconds = [archive.table(task.key)["cpu_seconds"][0].as_py() for task in STUDY.tasks()]
    assert page.cpu_seconds == pytest.approx(sum(seconds), abs=1e-12)
    assert len(page.machines) == 1 and re.search(r"\(cpu, \d+ cores\)", page.machines[0])


def test_the_same_rows_make_the_same_bytes(archive, tmp_path):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        assert write([answer(STUDY, archive)], folder, COMMAND) == folder / "studies.md"
    left, right = ({path.name: path.read_bytes() for path in f.iterdir()} for f in folders)
    assert sorted(left) == ["squares.svg", "studies.md"]
    assert left == right


def test_errors_by_chance_are_summed_and_a_remark_stands_below_the_table(archive):
    def judge(results):
        chances = (0.02, None, 0.025)
        return [
            replace(finding, chance=chance)
            for finding, chance in zip(STUDY.judge(results), chances, strict=True)
        ]

    told = replace(STUDY, judge=judge, remark=lambda results: f"Power of {len(results)} cells.")
    page = markdown([answer(told, archive)], COMMAND)
    assert "not reproduced | 0.04 of 2 |" in page or "not reproduced | 0.05 of 2 |" in page
    assert "\n\nPower of 3 cells.\n\n![" in page


def test_a_study_without_rows_keeps_its_section(archive, tmp_path):
    """And says so if its rule has changed since."""
    other = replace(STUDY, name="cubes", title="The cubes")
    document = tmp_path / "page.md"
    document.write_text(f"Mine.\n{BEGIN}\n{END}\nMine too.\n")
    both = [STUDY, other]
    publish([answer(study, archive) for study in both], document, COMMAND, both)
    whole = document.read_text()
    publish([answer(STUDY, archive)], document, COMMAND, both)
    assert document.read_text().split("</a>")[2] == whole.split("</a>")[2]
    publish([answer(other, archive)], document, COMMAND, [replace(STUDY, rule="A new one."), other])
    kept = document.read_text()
    assert kept.index("The squares](#squares)") < kept.index("The cubes](#cubes)")
    assert f"{EARLIER}\n\n**Rule.** A rule in words." in kept and kept.count(EARLIER) == 1
    assert "| not counted |" in kept
    publish([answer(other, archive)], document, COMMAND, [replace(STUDY, rule="A new one."), other])
    assert document.read_text() == kept
    assert kept.startswith("Mine.\n") and kept.endswith("\nMine too.\n")
