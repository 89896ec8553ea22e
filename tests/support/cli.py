"""Runs of the command line."""

from sigmoid_attention.cli import main


def complaint(capsys, *argv):
    """What standard error says after a run that must fail as bad input."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # What was read of a text is said where nothing was wrong with it.
    lines = [line for line in captured.err.splitlines() if not line.startswith("text: ")]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("sigmoid-attention: ")
    return lines[0]
