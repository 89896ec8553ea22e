"""The example on the theory page runs as printed."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "theory.md"


def test_the_example_of_the_page(capsys):
    section = PAGE.read_text().split("\n## Universality\n")[1]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out.splitlines()[0] == "3 35"
