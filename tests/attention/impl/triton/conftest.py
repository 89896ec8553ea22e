"""The Python process that interprets kernels, started once for all tests of a worker."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.triton import interpreter


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Call a function there, as ``interpreter.tiled`` does."""
    with interpreter.start() as pool:

        def call(function: Callable, *arguments: Any, **options: Any) -> Any:
            return pool.submit(interpreter.tiled, function, *arguments, **options).result()

        yield call
