"""What the README shows runs as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PYTHON = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
COMMANDS = re.findall(r"^sigmoid-attention (.*?)(?:  +#.*)?$", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[0])
def test_python_blocks_run(block):
    exec(block, {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_ones_that_there_are(command):
    from sigmoid_attention.cli.arguments import parse

    parse(shlex.split(command))


def test_there_is_something_to_test():
    assert len(PYTHON) >= 2
    assert len(COMMANDS) >= 4
