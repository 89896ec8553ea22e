"""The page shows every point of a run, and changes nothing outside of its markers."""

import pytest

from sigmoid_attention.studies.conversion.curve import ConversionCurve, Point
from sigmoid_attention.studies.conversion.page import BEGIN, END, main, publish

DESCRIBED = {
    "setting": {"steps": 4, "layer_steps": 2, "bf16": True, "form": "linear", "repeats": 0.5},
    "model": {"model": "tiny", "source": "made==1", "licence": "none"},
    "data": {
        "source": "/home-of-a-user/words",
        "version": "1",
        "bytes": 1000,
        "heldout_bytes": 100,
        "split": "by name",
    },
    "machine": {"processor": "a processor", "threads": 1},
    "versions": {"torch": "2.13"},
}


@pytest.fixture
def run(tmp_path):
    curve = ConversionCurve(DESCRIBED, seconds=120.0)
    curve.points = [
        Point("parent", 0, 0.0, {"loss": 3.5, "needle_64": 1.0}),
        Point("naive", 0, 0.0, {"loss": 21.25}),
        Point("calibrated", 0, 0.0, {"loss": 6.125}),
        Point("all layers", 3, 60.0, {"loss": 3.875}),
        Point("final", 6, 120.0, {"loss": 3.75, "needle_64": 0.5}),
    ]
    curve.write(tmp_path / "tiny-run")
    return tmp_path / "tiny-run"


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    return path


def test_every_point_is_a_row(run, document):
    main([str(document), str(run)])
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\n### tiny, linear, repeats 0.5\n") and text.endswith(
        f"{END}\nafter\n"
    )
    assert "text: words 1, " in text and "home-of-a-user" not in text
    assert "stale" not in text and "--bf16 --form linear" in text and "2 minutes" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| | steps | loss | needle 64 |" and len(rows) == 7
    assert rows[3] == "| sigmoid, b = -log(visible keys) | 0 | 21.250 |  |"
    assert rows[-1] == "| end | 6 | 3.750 | 0.500 |"
    figure = (document.parent / "page" / "tiny-run.svg").read_bytes()
    assert b"<svg" in figure and "![Curve of the conversion of tiny](page/tiny-run.svg)" in text
    publish([run], document)
    assert document.read_text() == text
    assert (document.parent / "page" / "tiny-run.svg").read_bytes() == figure


def test_a_folder_without_a_run_is_refused(document, tmp_path):
    with pytest.raises(ValueError, match="holds no conversion"):
        publish([tmp_path], document)


def test_a_document_without_marks_is_refused(run, document):
    document.write_text("words")
    with pytest.raises(ValueError, match="does not have"):
        publish([run], document)
    assert document.read_text() == "words"
