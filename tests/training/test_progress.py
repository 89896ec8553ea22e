"""Progress goes to standard error: a line now and then where there is no terminal."""

from sigmoid_attention.training import progress
from sigmoid_attention.training.progress import StepProgress


def test_without_a_terminal_the_last_step_makes_a_line(capsys):
    with StepProgress("sigmoid, seed 2", 0, 3, 64, shown=True) as bar:
        for done in (1, 2, 3):
            bar.update(done, 5.0 - done)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("sigmoid, seed 2: step 3/3  loss 2.0000") and "tokens/s" in err


def test_the_loss_is_shown_in_the_unit_that_is_asked_for(capsys):
    for factor, said in ((None, "loss 2.0000 nats/token"), (1.5, "loss 3.0000 bits/byte")):
        with StepProgress("train", 0, 1, 64, factor, shown=True) as bar:
            bar.update(1, 2.0)
        assert said in capsys.readouterr().err


def test_a_terminal_is_told_no_loss_before_there_is_one(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with StepProgress("train", 0, 2, 64, shown=True) as bar:
        bar.update(1, 2.0)
    err = capsys.readouterr().err
    assert "nan" not in err and "0 tokens/s" not in err.partition("loss")[0]


def test_lines_come_at_intervals(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with StepProgress("train", 10, 20, 50, shown=True) as bar:
        for done in range(11, 20):
            bar.update(done, 1.0)
    lines = capsys.readouterr().err.splitlines()
    # Every third update is 12 s after the last line: 3 steps of 50 tokens in 12 s.
    assert [line.split()[2] for line in lines] == ["13/20", "16/20", "19/20"]
    assert "12 tokens/s  28 s left" in lines[0]


def test_not_shown_is_silent(capsys):
    with StepProgress("train", 0, 1, 64, shown=False) as bar:
        bar.update(1, 5.0)
    assert capsys.readouterr() == ("", "")
