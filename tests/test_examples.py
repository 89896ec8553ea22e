"""Every script in examples/ runs unchanged and without arguments."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_runs(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip(), "an example prints what it shows"
    assert not list(tmp_path.iterdir()), "an example leaves no files behind"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_is_short_and_listed(script):
    assert len(script.read_text().splitlines()) <= 60
    assert f"`{script.name}`" in (EXAMPLES / "README.md").read_text()
    assert f'"examples/{script.name}"' in (EXAMPLES.parent / "docs/examples.md").read_text()
