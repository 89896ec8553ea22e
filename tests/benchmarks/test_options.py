"""The costs of options: every suite runs, is judged, and is published on its page."""

import pytest

import benchmarks.__main__ as command_line
from benchmarks import mixtures as laboratory
from benchmarks import options
from benchmarks.__main__ import main
from benchmarks.table import checks_block


@pytest.mark.parametrize("suite", options.SUITES)
def test_a_quick_run_writes_every_check_of_a_suite(suite, tmp_path, capsys):
    out = tmp_path / "options.jsonl"
    assert main(["options", "--quick", "--only", suite, "--out", str(out)]) == 0
    checks = laboratory.read(out)
    assert {check.suite for check in checks} == {suite}
    assert all(check.value > 0 and check.unit == "x" for check in checks)
    assert "of plain" in checks_block(checks)
    assert suite.removesuffix("ing") in capsys.readouterr().out


def test_an_unknown_suite_is_refused(capsys):
    assert main(["options", "--only", "speed"]) == command_line.BAD_INPUT
    assert "--only must be of training, decoding, mass, got speed" in capsys.readouterr().err
