"""Tables in files: written rows are read back, or the file is reported as damaged."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigmoid_attention.training.files import Damaged
from sigmoid_attention.training.tables import parquet_bytes, read_table

TABLE = pa.table({"loss": [5.547, 3.898, -1.0], "arm": ["softmax", "sigmoid", None]})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet_bytes(TABLE))
    return path


def test_a_table_comes_back_here_and_elsewhere(path):
    assert read_table(path, TABLE.schema).equals(TABLE)
    assert pq.read_table(path).equals(TABLE)


def test_the_same_table_makes_the_same_bytes(path):
    assert parquet_bytes(TABLE) == path.read_bytes()


def test_no_flipped_bit_goes_unnoticed(path):
    data = path.read_bytes()
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(Damaged, match=r"rows\.parquet is damaged"):
            read_table(path, TABLE.schema)


def test_no_cut_and_no_tail_goes_unnoticed(path):
    data = path.read_bytes()
    for content in (*(data[:length] for length in range(0, len(data), 7)), data + b"\0", data * 2):
        path.write_bytes(content)
        with pytest.raises(Damaged):
            read_table(path, TABLE.schema)


def test_a_file_of_an_earlier_version_is_read(path):
    pq.write_table(TABLE, path, compression="zstd", write_page_checksum=True)
    assert read_table(path, TABLE.schema).equals(TABLE)


def test_a_zeroed_block_is_damage(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    with pytest.raises(Damaged):
        read_table(path, TABLE.schema)


def test_other_columns_are_damage(path):
    with pytest.raises(Damaged, match="other columns"):
        read_table(path, pa.schema([("loss", pa.float64())]))


# A thread of pyarrow's pools that is still starting aborts a process that ends: exit code 134.
THREADS = """
import os, sys
from pathlib import Path
import torch
from sigmoid_attention.lab.rows import ROW_SCHEMA
from sigmoid_attention.training import tables

path = Path(sys.argv[1])
path.write_bytes(tables.parquet_bytes(ROW_SCHEMA.empty_table()))
before = len(os.listdir("/proc/self/task"))
tables.read_table(path, ROW_SCHEMA)["arm"].unique().to_pylist()
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_reading_starts_no_threads(path):
    command = [sys.executable, "-c", THREADS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_file_under_the_name_of_another_is_refused(tmp_path):
    path = tmp_path / "seed100.parquet"
    path.write_bytes(parquet_bytes(TABLE, path.name))
    assert read_table(path, TABLE.schema).equals(TABLE)
    with pytest.raises(Damaged, match=r"seed101.parquet is damaged \(it was written as seed100"):
        read_table(path.rename(tmp_path / "seed101.parquet"), TABLE.schema)
