"""The code in README.md and docs/getting-started.md runs, and every command on a page exists."""

import re
import shlex
from pathlib import Path

import pytest

import sigmoid_attention

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# Generated parts and the log keep the commands of their day.
PAGES = [README, *sorted(set(ROOT.glob("docs/*.md")) - {ROOT / "docs/log.md"})]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in (README, ROOT / "docs/getting-started.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
COMMANDS = {
    command
    for page in PAGES
    for command in re.findall(
        r"^sigmoid-attention (.*?)(?:  +#.*)?$", page.read_text(), re.MULTILINE
    )
}


@pytest.mark.parametrize("block", BLOCKS)
def test_python_blocks_run(block):
    exec(block, {})


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_exist(command):
    from sigmoid_attention.cli.arguments import parse

    parse(shlex.split(command))


def test_there_is_something_to_test():
    assert len(BLOCKS) >= 4
    assert len(COMMANDS) >= 8


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_links_lead_to_files():
    """Links from the pages that GitHub shows; the site's builder checks those within docs/."""
    for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_bibliography_has_every_paper_that_is_cited():
    cited = {
        number
        for folder in ("src", "docs")
        for page in (ROOT / folder).rglob("*")
        if page.suffix in {".py", ".md", ".h", ".cpp"}
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", page.read_text())
    }
    listed = set(
        re.findall(r"arxiv.org/abs/([\d.]+)\)", (ROOT / "docs/bibliography.md").read_text())
    )
    assert cited - listed == set()


def test_the_api_page_lists_every_public_function():
    page = (ROOT / "docs/api/attention.md").read_text()
    listed = re.search(r"members: \[(.*)\]", page)[1].split(", ")
    assert set(listed) == {name for name in sigmoid_attention.__all__ if name[0].islower()}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in (README, ROOT / "CONTRIBUTING.md"):
        for named in re.findall(
            r"^make ([a-z-]+)|`make ([a-z-]+)`", page.read_text(), re.MULTILINE
        ):
            target = "".join(named)
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"
