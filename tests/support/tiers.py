"""Lists of cases of which `make test` runs a sample, and `make test-all` the whole."""

from collections.abc import Mapping
from typing import Any

import pytest


def sampled(cases: Mapping[str, tuple[Any, ...]], *sample: str) -> list:
    """The cases for ``parametrize``, by id; those outside the sample have the marker ``slow``."""
    assert cases.keys() >= set(sample)
    return [
        pytest.param(*values, id=case, marks=() if case in sample else pytest.mark.slow)
        for case, values in cases.items()
    ]
