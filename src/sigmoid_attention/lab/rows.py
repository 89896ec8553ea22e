"""The row of one measured value in long form, and its columns."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

SOFTMAX = "softmax"
SIGMOID = "sigmoid"
ARMS = (SOFTMAX, SIGMOID)
# The `arm` of a value that belongs to neither arm: a baseline, the memory of the whole run.
BOTH = "both"

# The `seed`, `step`, `length` or `layer` of a value to which it does not apply.
NONE = -1

ROW_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("step", pa.int64()),
        ("length", pa.int64()),
        ("layer", pa.int64()),
        ("value", pa.float64()),
        ("unit", pa.string()),
        # JSON texts. They are the same in nearly every row, and Parquet stores them once.
        ("setting", pa.string()),
        ("machine", pa.string()),
        ("versions", pa.string()),
        ("provenance", pa.string()),
    ]
)


@dataclass(frozen=True)
class ArmRow:
    """One measured value; -1 if seed, step, length or layer do not apply."""

    arm: str
    metric: str
    value: float
    unit: str
    seed: int = NONE
    step: int = NONE
    length: int = NONE
    layer: int = NONE

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "ArmRow":
        """The value of a stored row, without the columns that describe its run."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})
