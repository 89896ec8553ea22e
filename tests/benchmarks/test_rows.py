"""Rows survive their file, ratios stay within their rounds, and newer rows replace older ones."""

import json
from dataclasses import replace

import pytest

from benchmarks import mixtures
from benchmarks.gpu import readings
from benchmarks.operations import Case
from benchmarks.rows import Row, merged, ratio_to, read, results_file, write
from tests.support.benchmarks.rows import STAMP, timed_rows

CASE = Case("forward", "bf16", 1024)


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = timed_rows(CASE, sdpa=(2.0, 3.0), ours=(0.5, 0.4))
    refused = Row(CASE, "flex", 2, refused="NotImplementedError: no", stamp=STAMP)
    memory = Row(replace(CASE, operation="memory-forward"), "ours", 1, bytes=(5, 6), stamp=STAMP)
    rows = merged(rows, [refused, memory, replace(refused, peer="x", error={"output": 1e-3})])
    write(tmp_path / "rows.jsonl", rows)
    assert read(tmp_path / "rows.jsonl") == rows
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 5


def test_no_file_has_no_rows(tmp_path):
    assert read(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize(
    ("threads", "of", "value", "low", "high"),
    [(2, "wall", 2.0, 2.0, 4.0), (1, "cpu", 5.0, 2.5, 10.0)],
    ids=["two-threads-by-wall", "one-thread-by-cpu"],
)
def test_ratio_is_of_medians_and_spreads_over_rounds(threads, of, value, low, high):
    sdpa = Row(CASE, "sdpa", threads, wall=(4.0, 4.0, 8.0), cpu=(5.0, 5.0, 10.0))
    ours = Row(CASE, "ours", threads, wall=(2.0, 2.0, 2.0), cpu=(1.0, 2.0, 1.0))
    ratio = ratio_to(sdpa, ours)
    assert (ratio.baseline, ratio.of) == ("sdpa", of)
    assert (ratio.value, ratio.low, ratio.high) == (value, low, high)


def test_ratio_of_memory_is_of_bytes():
    memory = replace(CASE, operation="memory-forward")
    ratio = ratio_to(Row(memory, "sdpa", 1, bytes=(30, 20)), Row(memory, "ours", 1, bytes=(10, 10)))
    assert (ratio.of, ratio.value, ratio.low, ratio.high) == ("bytes", 2.5, 2.0, 3.0)


def test_newest_row_of_a_key_wins_and_the_others_stay():
    old = timed_rows(CASE, sdpa=2.0, ours=1.0)
    other = timed_rows(CASE, threads=1, sdpa=2.0, ours=1.0)
    new = timed_rows(CASE, sdpa=3.0, ours=0.5)
    both = merged(old | other, new.values())
    assert len(both) == 4
    assert both[CASE, "ours", 2].cost == 0.5
    assert both[CASE, "ours", 1].cost == 1.0
    # In the old places, so that a file's history shows what was measured anew.
    assert list(both) == [*old, *other]


def test_results_are_named_after_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.rows.processor_name", lambda: "AMD EPYC(TM) 9B45, 2 GHz")
    assert results_file(tmp_path, "cpu").name == "cpu-amd-epyc-tm-9b45-2-ghz.jsonl"
    assert results_file(tmp_path / "my.jsonl", "cpu") == tmp_path / "my.jsonl"


@pytest.mark.parametrize(
    "line", ["{", "[]", "[" * 9999, '{"peer": "ours", "threads": "x", "wol": []}']
)
def test_a_damaged_file_is_named(tmp_path, line):
    (tmp_path / "cpu.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"cpu\.jsonl is damaged"):
        read(tmp_path / "cpu.jsonl")


def kinds(folder):
    """One file of each kind with its reader."""
    write(folder / "rows.jsonl", timed_rows(CASE, sdpa=(2.0, 3.0)))
    readings.write(folder / "readings.jsonl", [readings.Reading("rate of x", "1", (2.0, 3.0))])
    mixtures.write(folder / "checks.jsonl", [mixtures.Check("s", "one", 2.0, "x", 3.0)])
    return {"rows": read, "readings": readings.read, "checks": mixtures.read}


@pytest.mark.parametrize("kind", ["rows", "readings", "checks"])
def test_the_checksum_detects_another_number(tmp_path, kind):
    reads, path = kinds(tmp_path)[kind], tmp_path / f"{kind}.jsonl"
    content = path.read_bytes()
    for old, new in ((b"2.0", b"6.0"), (b"3.0", b"7.0")):
        path.write_bytes(content.replace(old, new, 1))
        with pytest.raises(ValueError, match=rf"{kind}\.jsonl is damaged .*checksum"):
            reads(path)


@pytest.mark.parametrize("kind", ["rows", "readings", "checks"])
def test_lines_of_earlier_versions_have_no_checksum(tmp_path, kind):
    reads, path = kinds(tmp_path)[kind], tmp_path / f"{kind}.jsonl"
    content = reads(path)
    line = json.loads(path.read_text())
    assert line.pop("sha256")
    path.write_text(json.dumps(line))
    assert reads(path) == content
