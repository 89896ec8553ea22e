"""docs/benchmarks.md and its picture show the rows, and name missing ones."""

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.listing import listing
from benchmarks.operations import Case
from benchmarks.plot import plot
from benchmarks.rows import Row, merged
from benchmarks.table import cpu_block, with_block
from tests.support.benchmarks.rows import STAMP, timed_rows

FORWARD = Case("forward", "fp32", 1024, mask="causal")


@pytest.fixture
def rows():
    rows = timed_rows(FORWARD, sdpa=(0.3, 0.33), ours=(0.1, 0.1), tiled=(0.6, 0.6))
    rows |= timed_rows(replace(FORWARD, dim=128), sdpa=0.5, ours=0.2)
    rows |= timed_rows(replace(FORWARD, length=4096), sdpa=4.0, ours=1.0, tiled=8.0)
    rows |= timed_rows(FORWARD, threads=1, sdpa=9.9, ours=1.0)
    rows |= timed_rows(Case("decode", "bf16", 8192), sdpa=0.12, ours=0.01)
    rows |= timed_rows(Case("headline", "bf16", 65536, mask="causal"), sdpa=20.0, ours=0.4)
    rows |= timed_rows(Case("memory-forward", "bf16", 8192, heads=4), sdpa=2**24, ours=2**23)
    refused = Row(FORWARD, "flex", 2, refused="NotImplementedError: no kernel. Sorry.", stamp=STAMP)
    return merged(rows, [refused])


def test_ratios_stand_by_length_and_dim(rows):
    lines = cpu_block(rows, "docs/x.svg").splitlines()
    (forward,) = [line for line in lines if line.startswith("| forward, causal")]
    # N = 128, 256, 1k, 2k, 4k, 8k; both dims where both were measured.
    assert forward == "| forward, causal, fp32 | – | – | 3.15 / 2.50 | – | 4.00 / – | – |"
    (decoding,) = [line for line in lines if line.startswith("| decoding")]
    assert decoding == "| decoding, bf16 | – | 12.0 / – | – | – |"
    assert not any(line.startswith("| forward + backward") for line in lines)


def test_facts_are_sentences(rows):
    text = " ".join(cpu_block(rows, "docs/x.svg").split())
    assert "Some Processor, 4 cores, 2 threads, kernel path avx2, torch 2.13.0, 2026-01-02." in text
    assert "takes 400 ms, SDPA without ALiBi 20.0 s: 50.0 times faster." in text
    assert "forward bf16 8.00 MiB (16.0 MiB)." in text
    assert "Refused: flex, forward, N = 1k (NotImplementedError: no kernel)." in text
    assert "(docs/x.svg)" in text


def test_no_line_of_prose_reads_as_markdown(rows):
    for line in cpu_block(rows, "docs/x.svg").splitlines():
        assert not re.match(r"\s+[-+*>] ", line)


def test_a_page_without_measurements_states_that():
    assert "Nothing has been measured" in cpu_block({}, "docs/x.svg")


def test_block_takes_the_place_of_the_old_one():
    text = "a\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nz\n"
    once = with_block(text, "new")
    assert once == "a\n<!-- benchmark -->\nnew\n<!-- /benchmark -->\nz\n"
    assert with_block(once, "new") == once
    with pytest.raises(ValueError, match="the page must hold"):
        with_block("no place for it", "new")


def test_terminal_shows_every_row_and_every_reason(rows):
    page = io.StringIO()
    Console(width=200, file=page).print(listing(rows.values()))
    shown = page.getvalue()
    assert len(shown.splitlines()) == len(rows) + 1
    assert "NotImplementedError: no kernel. Sorry." in shown
    assert re.search(r"100 ms .* 3\.15x +3\.00 to 3\.30", shown)


def test_picture_is_whole_and_has_a_line_a_peer(rows):
    root = ET.fromstring(plot(rows))
    classes = [element.get("class", "") for element in root.iter()]
    # Once in the legend, and once in each panel with rows.
    assert classes.count("line ours mean") == 3
    assert classes.count("line tiled alone") == classes.count("line tiled mean") == 1
    assert "line flex alone" not in classes
    assert classes.count("whisker ours") == 3
    titles = [group[0].text for group in root.iter() if group.get("class") == "title"]
    assert titles[1:] == ["Forward, causal, fp32", "One query against a cache, bf16"]
    width, height = (float(root.get(side, "0")) for side in ("width", "height"))
    for element in root.iter():
        assert 0 <= float(element.get("x", "0")) <= width
        assert 0 <= float(element.get("y", "0")) <= height


def test_no_ratio_makes_no_picture():
    with pytest.raises(ValueError, match="nothing to draw"):
        plot(timed_rows(FORWARD, ours=1.0))
