"""Every architecture against every check that applies to it."""

import inspect
from pathlib import Path

import pytest

from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES
from tools.architecture_table import COLUMNS, legend, markdown

CASES = [
    pytest.param(name, check, id=f"{name}-{head.replace(' ', '-')}")
    for head, check, fits in COLUMNS
    for name, architecture in ARCHITECTURES.items()
    if fits(architecture)
]


@pytest.mark.product
@pytest.mark.parametrize(("name", "check"), CASES)
def test_architecture(name, check, tmp_path):
    folder = {"folder": tmp_path} if "folder" in inspect.signature(check).parameters else {}
    check(ARCHITECTURES[name], **folder)


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_copies_have_modules_of_their_own(name):
    checks.copied(ARCHITECTURES[name])


def test_the_table_has_a_row_for_each_architecture_and_says_what_was_tested():
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(ARCHITECTURES)
    assert lines[2].count("yes") == len(COLUMNS)  # Llama
    assert sum(line.count("yes") for line in lines) == len(CASES)
    assert all(head in legend() for head, _, _ in COLUMNS)


def test_the_table_in_the_docs_is_the_one_that_is_printed():
    page = (Path(__file__).parents[3] / "docs" / "integrations.md").read_text(encoding="utf-8")
    assert f"{markdown()}\n\n{legend()}\n<!-- architectures end -->" in page
