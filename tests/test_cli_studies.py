"""`studies` and `rates` on the command line: tables, reports, resuming, and bad input."""

import pytest

from sigmoid_attention.cli import main
from sigmoid_attention.studies import registry
from tests.support.cli import complaint
from tests.support.studies import squares_study


@pytest.fixture
def squares(monkeypatch):
    """The registry with one study, which takes no time."""
    monkeypatch.setattr(registry, "CLAIM_STUDIES", {"made": ("squares",)})
    monkeypatch.setattr(registry, "_module", lambda group, name: squares_study.__name__)


def test_run_list_report(squares, tmp_path, capsys):
    out, docs = tmp_path / "out", tmp_path / "words.md"
    assert main(["studies", "list", "--out", str(out)]) == 0
    line = capsys.readouterr().out.rstrip().splitlines()[-1].split()
    assert line[0] == "squares" and line[-4:] == ["0", "of", "3", "tasks"]
    assert not out.exists()

    assert main(["studies", "run", "squares", "--out", str(out), "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "The squares" in captured.out and "not reproduced" in captured.out
    assert "3/3 squares" in captured.err
    before = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert len(before) == 3
    assert main(["studies", "run", "--all", "--out", str(out)]) == 0
    assert "3 of 3 tasks are done already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == before

    message = complaint(capsys, "studies", "report", "--out", str(out), "--docs", str(docs))
    assert f"docs: {docs} is no document" in message
    docs.write_text("before <!-- studies --> old\nold <!-- /studies --> after\n")
    assert main(["studies", "report", "--out", str(out), "--docs", str(docs)]) == 0
    page = out / "report" / "studies.md"
    assert capsys.readouterr().out.splitlines() == [f"report: {docs}", f"report: {page}"]
    text = docs.read_text()
    assert text.startswith("before <!-- studies -->\n") and text.endswith(
        "<!-- /studies --> after\n"
    )
    assert "old" not in text and "![The squares](words/squares.svg)" in text
    figure = tmp_path / "words" / "squares.svg"
    assert (out / "report" / "squares.svg").read_bytes() == figure.read_bytes()
    docs.write_text("no markers\n")
    message = complaint(capsys, "studies", "report", "--out", str(out), "--docs", str(docs))
    assert "does not have <!-- studies -->" in message and docs.read_text() == "no markers\n"
    assert main(["studies", "list", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split()[-4:] == ["3", "of", "3", "tasks"]


def test_a_task_that_fails_is_named_and_the_exit_code_is_2(squares, tmp_path, capsys, monkeypatch):
    tasks = [squares_study.task(1), squares_study.task(2, run=squares_study.broken)]
    monkeypatch.setattr(squares_study, "STUDY", squares_study.study(*tasks))
    out = str(tmp_path / "out")
    assert main(["studies", "run", "squares", "--out", out, "--workers", "1"]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        "sigmoid-attention: squares, cell 2, late: ZeroDivisionError: nothing goes into nothing"
    )
    assert captured.out == ""
    message = complaint(capsys, "studies", "report", "squares", "--out", out)
    assert "squares is not complete" in message and "1 of 2 tasks are done" in message
    assert "sigmoid-attention studies run squares goes on" in message


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["studies", "run"], "name: give one or more of nguyen2024_table, "),
        (["studies", "run", "p4"], "name must be one of nguyen2024_table, "),
        (
            ["studies", "run", "compare"],
            "name: compare has a command of its own: sigmoid-attention",
        ),
        (["studies", "run", "collapse", "--workers", "0"], "workers must be 1 or more, got 0"),
        (["studies", "report", "p4"], "name must be one of nguyen2024_table, "),
        (["studies", "report"], "holds no complete study"),
        (["rates", "--gate", "sigmoid,gumbel"], "gate must be one of sigmoid, softmax, "),
        (["rates", "--expert", "lstm"], "expert must be one of relu, "),
        (["rates", "--regime", "thin"], "regime must be one of sparse, dense, got 'thin'"),
        (["rates", "--score", "cubic"], "score must be one of linear, "),
        (["rates", "--k", "0"], "k must be a whole number of 1 or more, got 0"),
        (["rates", "--d", "2,-1"], "d must be a whole number of 1 or more, got -1"),
        (["rates", "--extra", "-1"], "extra must be 0 or more, got -1"),
        (["rates", "--d", "two"], "d must be whole numbers between commas, got 'two'"),
        (["studies", "run", "colapse"], "got 'colapse'; did you mean collapse?"),
        (
            ["studies", "report", "shared_expert"],
            "got 'shared_expert'; did you mean shared_experts?",
        ),
        (["rates", "--gate", "softmx"], "got 'softmx'; did you mean softmax?"),
        (["rates", "--claim", "nan"], "--claim must be 0 or a negative number, got nan"),
        (["rates", "--workers", "-1"], "workers must be 1 or more, got -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused(argv, says, tmp_path, capsys):
    out = tmp_path / "out"
    assert says in complaint(capsys, *argv, "--out", str(out))
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder(squares, tmp_path, capsys):
    out = tmp_path / "out"
    out.write_text("mine")
    for command in (["run", "squares"], ["list"], ["report"]):
        assert "must be a folder" in complaint(capsys, "studies", *command, "--out", str(out))
    assert out.read_text() == "mine"


@pytest.mark.slow
def test_rates_of_the_chosen_studies(tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["rates", "--gate", "sigmoid,softmax", "--extra", "0", "--quick", "--workers", "1"]
    assert main([*argv, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    for text in ("sigmoid gelu dense +0", "softmax gelu dense +0", "exact: n^-0.5", "undecided"):
        assert text in captured.out
    page = (out / "report" / "studies.md").read_text()
    assert "`sigmoid-attention rates --gate sigmoid,softmax --expert gelu" in page
    assert "--extra 0 --claim -0.5 --quick`" in page
    assert b"<svg" in (out / "report" / "rates.svg").read_bytes()
    rows = len(list((out / "rows").iterdir()))
    assert main([*argv, "--out", str(out)]) == 0
    assert f"{rows} of {rows} tasks are done already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["rates"], ["studies"], ["studies", "run"], ["studies", "list"], ["studies", "report"]],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: sigmoid-attention {' '.join(command)}" in shown
    assert "action." not in shown


def test_a_damaged_file_is_named_by_report_and_list(squares, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["studies", "run", "squares", "--out", str(out), "--workers", "1"]) == 0
    part = min((out / "rows").iterdir())
    part.write_bytes(part.read_bytes()[:-9])
    for argv, code in (["report"], 2), (["report", "squares"], 2), (["list"], 0):
        capsys.readouterr()
        assert main(["studies", *argv, "--out", str(out)]) == code
        assert f"{part} is damaged" in capsys.readouterr().err


def test_a_damaged_setting_is_named_by_list(tmp_path, capsys):
    (tmp_path / "setting.json").write_text("{")
    assert main(["studies", "list", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "setting.json is damaged" in captured.err and "damaged" in captured.out
