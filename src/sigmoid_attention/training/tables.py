"""Reads and writes Parquet files with a checksum that detects damage.

The footer holds the SHA-256 of the whole file, computed with zeros in place of its own digits.
Parquet's own checksums cover only the pages, and a flipped bit in the footer can change how the
pages are read. Other readers of Parquet can read these files.
"""

import hashlib
import io
from pathlib import Path

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.training.files import Damaged, read_whole

with lab_imports("sigmoid_attention.training"):
    import pyarrow as pa
    import pyarrow.parquet as pq

# Two marks: if one is damaged, the file is not mistaken for a file without a checksum.
KEY = b"sigmoid-attention:checksum"
MARK = b"sigmoid-attention:sha256:"
ZEROS = b"0" * 64
NAME = b"sigmoid-attention:name"


def parquet_bytes(table: pa.Table, name: str | None = None) -> bytes:
    """The content of a Parquet file with the checksum that `read_table` verifies.

    With `name`, the file's name, `read_table` refuses the content under another name.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, table.schema, compression="zstd", write_page_checksum=True
    ) as writer:
        writer.write_table(table)
        named = {} if name is None else {NAME: name.encode(errors="surrogateescape")}
        writer.add_key_value_metadata(named | {KEY: MARK + ZEROS})
    data = buffer.getvalue()
    start = data.rindex(MARK) + len(MARK)
    digits = hashlib.sha256(data).hexdigest().encode()
    return data[:start] + digits + data[start + len(ZEROS) :]


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read the table of a file that `parquet_bytes` made.

    For a file of an earlier version, which has no checksum of the whole file, the pages' checksums
    are verified. A file without a stored name may have any name.

    Raises:
        Damaged: the file is not what was written, or has other columns than `schema`.
        OSError: the file does not exist or cannot be read.

    Example:
        >>> import tempfile
        >>> table = pa.table({"loss": [5.5, 3.25]})
        >>> path = Path(tempfile.mkdtemp(), "losses.parquet")
        >>> _ = path.write_bytes(parquet_bytes(table))
        >>> read_table(path, table.schema)["loss"].to_pylist()
        [5.5, 3.25]
        >>> data = bytearray(path.read_bytes())
        >>> data[40] ^= 1
        >>> _ = path.write_bytes(data)
        >>> read_table(path, table.schema)
        Traceback (most recent call last):
        ...
        sigmoid_attention.training.files.Damaged: ...losses.parquet is damaged (its checksum ...
    """
    data = read_whole(path)
    if not _intact(data):
        raise Damaged(f"{path} is damaged (its checksum does not fit its content)")
    try:
        # Without pyarrow's thread pools: a process that ends while they start is aborted.
        file = pq.ParquetFile(
            pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True
        )
        table = file.read(use_threads=False).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"{path} is damaged ({' '.join(str(error).split())})") from error
    name = (file.metadata.metadata or {}).get(NAME, b"").decode(errors="surrogateescape")
    if name not in ("", path.name):
        raise Damaged(f"{path} is damaged (it was written as {name})")
    if not table.schema.equals(schema):
        raise Damaged(f"{path} is damaged (it has other columns than were written)")
    return table


def _intact(data: bytes) -> bool:
    if KEY not in data and MARK not in data:
        return True
    before, mark, after = data.rpartition(MARK)
    if KEY not in data or not mark:
        return False
    digits, rest = after[: len(ZEROS)], after[len(ZEROS) :]
    return hashlib.sha256(before + mark + ZEROS + rest).hexdigest().encode() == digits
