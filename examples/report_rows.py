"""Read the rows of a comparison with pandas.

    python examples/report_rows.py [runs/compare/rows.parquet]

Without an argument it makes a comparison of a few steps first, which proves nothing.
"""

import json
import sys
import tempfile
from pathlib import Path

import pandas as pd

from sigmoid_attention.cli import main

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
    else:
        out = str(Path(folder) / "compare")
        assert (
            main(["compare", "--preset", "tiny", "--steps", "5", "--seeds", "1", "--out", out]) == 0
        )
        path = Path(out) / "rows.parquet"
    rows = pd.read_parquet(path)

# One row is one measured number: arm, seed, metric, step, length, layer, value, unit.
print(rows.groupby(["metric", "unit"]).size())

losses = rows[rows.metric == "validation_bits_per_byte"]
print(losses.pivot_table(index="length", columns="arm", values="value"))

# Each row also says how it was made.
print(json.loads(rows.machine.iloc[0]), json.loads(rows.versions.iloc[0])["torch"])
