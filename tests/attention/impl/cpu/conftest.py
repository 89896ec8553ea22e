"""The shared fixtures of the CPU kernel tests: a kernel, or the reason for its absence."""

import os

import pytest

from sigmoid_attention.attention import call_cache
from sigmoid_attention.attention.impl.cpu.abi import loaded
from sigmoid_attention.attention.impl.cpu.compiler import NoCompiler, find_compiler


@pytest.fixture(scope="session")
def kernel() -> None:
    """A broken kernel must not let the tiles take its tests."""
    if os.environ.get("SIGMOID_ATTENTION_CPU") == "off":
        pytest.skip("the CPU kernel is switched off")
    if loaded() is None:
        try:
            find_compiler()
        except NoCompiler as error:
            pytest.skip(str(error))
        pytest.fail("there is a compiler, and yet no CPU kernel: see the log")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch) -> None:
    """A test that changes how calls are made must not meet one made before."""
    monkeypatch.setattr(call_cache, "_prepared", {})
