"""What docs/integrations.md shows runs as it stands there, section by section."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
# The pieces of the page behind each heading of the second level, by that heading.
PIECES = re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)[1:]
SECTIONS = dict(zip(PIECES[::2], PIECES[1::2], strict=True))


BLOCKS = {
    heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for heading, text in SECTIONS.items()
}


@pytest.mark.parametrize("heading", BLOCKS)
def test_python_blocks_run(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "example"}
    for block in BLOCKS[heading]:
        exec(block, namespace)


@pytest.mark.parametrize("heading", ["timm", "flash-attn and triton-sigmoid names", "torch"])
def test_there_is_something_to_run(heading):
    assert len(BLOCKS[heading]) >= 3
