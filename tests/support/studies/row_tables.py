"""Tables of rows in the format of a comparison."""

import pyarrow as pa

from sigmoid_attention.lab.rows import NONE, ROW_SCHEMA


def table(*rows):
    names = ("arm", "seed", "metric", "step", "length", "value")
    blank = {**dict.fromkeys(ROW_SCHEMA.names, ""), "layer": NONE}
    listed = [{**blank, **dict(zip(names, row, strict=True))} for row in rows]
    return pa.Table.from_pylist(listed, schema=ROW_SCHEMA)
