"""Each code block of docs/integrations.md runs as printed, by itself."""

import re
from pathlib import Path

import pytest
import torch

TEXT = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
# The pieces of the page behind each heading of the second level, by that heading.
PIECES = re.split(r"^## (.*)\n", TEXT, flags=re.MULTILINE)[1:]
SECTIONS = dict(zip(PIECES[::2], PIECES[1::2], strict=True))


BLOCKS = {
    heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for heading, text in SECTIONS.items()
}
CASES = [
    pytest.param(block, id=f"{heading}-{place}")
    for heading, blocks in BLOCKS.items()
    for place, block in enumerate(blocks)
]


# torch says of some of its tracing that it is old.
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.:DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("block", CASES)
def test_a_python_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What was compiled before is not part of the page.
    torch._dynamo.reset()
    exec(block, {"__name__": "example"})


@pytest.mark.parametrize("heading", ["timm", "flash-attn and triton-sigmoid names", "torch"])
def test_there_is_something_to_run(heading):
    assert len(BLOCKS[heading]) >= 3
