"""A second Python process in which Triton interprets its kernels on the CPU.

Triton decides at the definition of a kernel whether it is GPU code or, with ``TRITON_INTERPRET=1``
in the environment, code for numpy. Tests of compilation need the first, tests of values the second,
and pytest-xdist may give both to the same worker.

A call to the process names a function of a test module; arguments and results are passed by value.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sigmoid_attention.attention import call_cache, sigmoid_attention
from tests.support.cpu.oracle import Named, differentiated

_ENVIRONMENT = {
    "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
    "SIGMOID_ATTENTION_GPU_LAUNCH_CACHE": "1",
}  # fmt: skip


def start() -> ProcessPoolExecutor:
    """The other Python, started."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    with mock.patch.dict(os.environ, _ENVIRONMENT):
        pool.submit(one_thread).result()
    return pool


def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Blocks:
    """Small tiles, so that short sequences have many, and a plan for however few keys."""

    query: int = 16
    key: int = 16
    span: int = 32
    planned: bool = True
    described: bool = False


def tiled(function: Callable, blocks: Blocks, *arguments: Any, in_order: bool = False) -> Any:
    """A function's result where the kernels run with such tiles."""
    from sigmoid_attention.attention.impl.triton import call, configs

    config = configs.Config(blocks.query, blocks.key, 4, 1, blocks.described)
    longest = 0 if blocks.planned else 2**31
    torch.use_deterministic_algorithms(in_order)
    with (
        mock.patch.object(
            configs,
            "choose",
            lambda *_: configs.Configs(config, config, config, config, blocks.span),
        ),
        mock.patch.multiple(call, PLANNED_WITH_SLOPES=longest, PLANNED_WITHOUT=longest),
        # A call that was made with other tiles would be made with them again.
        mock.patch.multiple(call_cache, _prepared={}, _counts={}),
    ):
        return function(*arguments)


def output(positional: tuple, arguments: dict) -> Tensor:
    with torch.no_grad():
        return sigmoid_attention(*positional, **arguments, impl="triton")


def with_gradients(positional: tuple, arguments: dict) -> Named:
    return differentiated(sigmoid_attention, positional, arguments | {"impl": "triton"})


def under_autocast(positional: tuple, arguments: dict, half: torch.dtype) -> list[Named]:
    """The same without autocast, with it, and with query and key in fp32 beside a lower value."""
    query, key, value, *others = positional
    mixed = (query, key, value.to(half), *others)
    answers = [with_gradients(positional, arguments)]
    with torch.autocast("cpu", half):
        answers += [with_gradients(positional, arguments), with_gradients(mixed, arguments)]
    return answers


def spans_of(positional: tuple, arguments: dict) -> dict[str, Tensor | None]:
    """The plan that each kernel of both passes is handed, by its name; the kernel is not run."""
    from sigmoid_attention.attention.impl.triton import call

    actual = {}
    launch = call.launch

    def recorded(kernel, programs, *positional, **constants) -> None:
        if "spans" in kernel.arg_names:
            spans = positional[kernel.arg_names.index("spans")]
            actual[kernel.fn.__name__] = None if spans is None else spans.clone()
        else:
            launch(kernel, programs, *positional, **constants)

    with mock.patch.object(call, "launch", recorded):
        with_gradients(positional, arguments)
    return actual
