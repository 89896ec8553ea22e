"""The page: its statements, the absence of external resources, and notes on missing results."""

import errno
import os
import re
from functools import cache
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from sigmoid_attention.report import chart
from sigmoid_attention.report.page import page, render
from tests.support.studies.synthetic_comparison import NO_KERNEL, synthetic_comparison
from tests.support.tiers import sampled

CASES = {
    "3-seeds": {},
    "1-seed": {"seeds": 1},
    "2-seeds-no-interval": {"seeds": 2},
    "11-seeds": {"seeds": 11},
    "24-layers": {"layers": 24},
    "1-layer": {"layers": 1},
    "softmax-only": {"arms": ("softmax",)},
    "sigmoid-only": {"arms": ("sigmoid",)},
    "no-timings": {"without": ("operator", "step", "peak")},
    "no-copying": {"without": ("copy",)},
    "no-training-curves": {"without": ("train_loss", "attention", "recall", "copy")},
    "no-kernel": {"operator": NO_KERNEL},
    "all-or-nothing": {"seeds": 4, "fails": (0, 2)},
    "nothing": {"without": ("",)},
    "diverged": {"stopped": ("sigmoid", 1, 90)},
    "diverged-at-once": {"seeds": 1, "stopped": ("sigmoid", 0, 0)},
}


class Reader(HTMLParser):
    """What a browser would read off the page: elements, attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        if self.tags and self.tags[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@cache
def page_of(case: str) -> str:
    """The page of a case, drawn once for all tests."""
    return page(synthetic_comparison(**CASES[case]))


# Other tests draw the first five pages as well.
SAMPLE = (
    "3-seeds", "softmax-only", "no-timings", "no-kernel", "all-or-nothing", "nothing",
    "diverged-at-once",
)  # fmt: skip


@pytest.fixture(params=sampled({case: (case,) for case in CASES}, *SAMPLE))
def html(request) -> str:
    return page_of(request.param)


def pictures(html: str) -> list[ElementTree.Element]:
    """The page's panels, which must be well-formed; the legend's keys are left out."""
    panels = re.findall(r'<svg viewBox="0 0 368.*?</svg>', html, flags=re.DOTALL)
    return [ElementTree.fromstring(svg) for svg in panels]


def test_the_page_loads_nothing(html):
    reader = Reader(html)
    assert not {"script", "iframe", "object", "embed", "img"} & set(reader.tags)
    addresses = [v for k, v in reader.attributes if k in ("src", "href", "xlink:href", "action")]
    # Links within the page, and to the rows beside it, which are fetched by a click alone.
    assert {a for a in addresses if not a.startswith("#")} == {"data:,", "rows.parquet"}
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html


def test_no_value_is_shown_as_nan(html):
    assert not re.search(r"\b(nan|inf|None)\b", html)


@pytest.mark.slow
def test_every_mark_lies_in_its_picture(html):
    for picture in pictures(html):
        points = [(float(use.get("x")), float(use.get("y"))) for use in picture.iter("use")]
        # A path of a marker has its origin in the marker's middle.
        markers = {path for defs in picture.iter("defs") for path in defs.iter("path")}
        for path in set(picture.iter("path")) - markers:
            numbers = [float(number) for number in re.findall(r"-?\d[\d.]*", path.get("d"))]
            points += zip(numbers[::2], numbers[1::2], strict=True)
        assert all(0 <= x <= chart.WIDTH and 0 <= y <= chart.HEIGHT for x, y in points)


@pytest.mark.slow
def test_every_picture_is_described_and_none_is_empty(html):
    for picture in pictures(html):
        assert picture.get("role") == "img"
        assert len(picture.get("aria-label")) > 30
        assert re.search(r'class="(line|dots) ', ElementTree.tostring(picture, "unicode"))
    reader = Reader(html)
    assert reader.tags.count("figure") == reader.tags.count("figcaption")


def test_the_order_is_verdict_advice_numbers_pictures_texts_method():
    text = Reader(page(synthetic_comparison())).text
    places = [
        text.index(part)
        for part in (
            "stay with softmax at this size",
            "from formulas",
            "Finished 2026-05-01 12:05 UTC · took 5 min 00 s · rows in runs/synthetic/rows.parquet",
            "Loss on held-out text",
            "Synthetic advice: train more seeds.",
            "sigmoid-attention compare --seeds 9 --resume",
            "Text, 256 tokens",
            "Thick lines and large marks",
            "raise ValueError(name)",
            "Sigmoid attention ran in the fused C++ kernel",
            "How a question is judged",
            "Synthetic rule",
            "The first that holds.",
            "Second synthetic headline.",
            "import pandas; rows = pandas.read_parquet('runs/synthetic/rows.parquet')",
            "sigmoid-attention compare --data stdlib",
            "CPython 3.11.2",
            "a synthetic processor",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("case", ["3-seeds", "no-kernel", "no-timings", "softmax-only"])
def test_the_page_has_the_gain_of_the_fused_operator_or_a_reason(case):
    expected = {
        "3-seeds": [
            "Question Verdict Unfused Fused Fused against unfused Training step Fused faster",
            "384 ms 234 ms 39% faster 0.610× , 0.606 to 0.615",
            "Operator forward + backward, 4,096 tokens",
            "Sigmoid attention ran in the fused C++ kernel (vector path avx512).",
        ],
        "no-kernel": [
            "Fused against unfused: not measured, since sigmoid attention ran in PyTorch alone (no "
            "fused kernel: no C++ compiler was found)",
        ],
    }
    text = Reader(page_of(case)).text
    assert [part for part in expected.get(case, []) if part not in text] == []
    assert ("Fused faster" in text) == (case == "3-seeds")
    assert ("What the fused operator gains" in text) == (case in expected)


def test_what_some_seeds_solve_and_others_do_not_is_counted():
    text = Reader(page_of("all-or-nothing")).text
    assert "Undecided solved by the same 2 of 4 seeds 2 of 4 2 of 4 0 seeds" in text
    assert "Associative recall, over training" not in text and "Copying, over training" in text
    assert "by 2 of 4 seeds, under sigmoid attention by 2 (solved by the same 2 of 4 seeds)" in text


def test_loss_by_time_says_who_is_ahead_at_equal_time():
    text = Reader(page(synthetic_comparison())).text
    row = "Text, at equal training time (85.9 s each) bits per byte, lower is better Softmax better"
    assert row in text
    assert (
        "At equal time, after 85.9 s, softmax has done all 400 steps and sigmoid 366. Then sigmoid "
        "attention needs 2.437 bits per byte and softmax 2.401: softmax better"
    ) in text
    assert "nats" not in text


def test_a_text_is_shown_safely():
    written = b"<script>\x1b[31m\x00 \xff \xe2\x80\xae"
    html = page(synthetic_comparison(written=written))
    assert "&lt;script&gt;\\x1b[31m\\x00 \\xff \\u202e" in html
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", html)


def test_the_same_comparison_gives_the_same_bytes():
    first = page(synthetic_comparison())
    chart.Panel.svg.cache_clear()
    assert first == page(synthetic_comparison())


@pytest.mark.parametrize("case", ["3-seeds", "1-seed", "softmax-only", "nothing", "diverged"])
def test_missing_results_are_named(case):
    expected = {
        "3-seeds": ["Recorded with seed 0 only.", "a table of byte pairs reaches 3.456"],
        "1-seed": ["Undecided", "measured once"],
        "softmax-only": ["Training loss: sigmoid has none.", "Cannot be compared"],
        "nothing": [
            "Validation loss: not measured.",
            "Held-out loss during training: not measured.",
            "Row mass: not measured.",
            "Texts of the models: not measured.",
            "Attention norm: not measured.",
            "Operator time, forward: not measured.",
            "Nothing to sum up",
            "seeds that trained none",
        ],
        "diverged": [
            "The sigmoid run of seed 1 ended at step 90; the longest reached 400.",
            "Validation loss, sigmoid, seed 1: the value was not finite.",
        ],
    }[case]
    text = Reader(page_of(case)).text
    assert [part for part in expected if part not in text] == []
    assert ("not measured" in text) == (case in ("softmax-only", "nothing"))


def test_text_from_outside_is_only_text():
    name = """/data/<script>alert("1")</script>/'><img src=x onerror=alert(2)>.txt"""
    headline = '<b>bold</b> & "quoted" </title><script>alert(3)</script>'
    html = page(
        synthetic_comparison(provenance={"source": name, name: {"a": name}}, headline=headline)
    )
    reader = Reader(html)
    assert not {"script", "img", "b"} & set(reader.tags)
    assert "onerror" not in dict(reader.attributes)
    assert reader.text.count(name) == 3
    assert headline in reader.text


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    report = tmp_path / "report.html"
    report.write_text("the old one")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        render(synthetic_comparison(), report)
    assert report.read_text() == "the old one"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
