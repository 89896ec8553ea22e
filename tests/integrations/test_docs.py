"""What docs/integrations.md shows runs as it stands there, section by section."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
# The pieces of the page behind each heading of the second level, by that heading.
PIECES = re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)[1:]
SECTIONS = dict(zip(PIECES[::2], PIECES[1::2], strict=True))


@pytest.mark.parametrize("heading", SECTIONS)
def test_python_blocks_run(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "example"}
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[heading], re.DOTALL):
        exec(block, namespace)
