"""Replays recorded Triton launches with new tensors, and so skips Triton's work for each argument.

At every launch Triton inspects all arguments to find the code that it has compiled for their types.
For a repeated call that code is known. It is started by a private call of Triton, and no GPU has
timed what that saves. So this cache is off unless ``SIGMOID_ATTENTION_GPU_LAUNCH_CACHE=1`` is in
the environment when it is first needed.
"""

import copy
import os
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sigmoid_attention.attention import dispatch
from sigmoid_attention.attention.impl.triton import activation
from sigmoid_attention.attention.impl.triton.launch import Launch, recorded, start
from sigmoid_attention.attention.problem import Problem

ENABLED = os.environ.get("SIGMOID_ATTENTION_GPU_LAUNCH_CACHE") == "1"

# The second call with the same key is cached. To record a call takes as long as to make it, and a
# contiguous cache that grows by a token a step never brings the same shapes again.
CALLS_BEFORE_CACHING = 2

# All tensors of a call: its inputs, its output, and workspaces between two launches.
CallTensors = tuple[Tensor | None, ...]
# Gives an argument of a launch from these.
_MakeArgument = Callable[[CallTensors], Any]


class _ForeignTensor(Exception):
    """A launch reads a tensor that is neither an input of the call nor written by a launch."""


def environment_key() -> Hashable:
    """What a call depends on beside its arguments."""
    return activation.tanh_is_used()


def prepare(
    tensors: CallTensors, problem: Problem, with_mass: bool
) -> Callable[[CallTensors], Tensor | None]:
    """A function that computes the call for other tensors.

    For a call that needs more than its launches the function always returns None. It is cached as
    well, because to find that out takes longer than the launches. So does a call with the mass.
    """
    if with_mass:
        return _uncacheable
    with recorded() as recording:
        out = _attended(problem)
    if out is None or out.numel() == 0:
        return _uncacheable
    try:
        every = (*tensors, out, *recording.workspaces)
        return CachedCall(every, len(tensors), recording.launches)
    except _ForeignTensor:
        return _uncacheable


def _uncacheable(tensors: CallTensors) -> None:
    return None


def _attended(problem: Problem) -> Tensor | None:
    """The answer of the kernels that the public functions take; None where these refuse."""
    try:
        return dispatch.BACKENDS["triton"].attend(problem)
    except NotImplementedError:
        return None


class CachedCall:
    """The launches of a call, for any inputs of the same shapes, strides and dtypes."""

    def __init__(self, tensors: CallTensors, inputs: int, launches: list[Launch]) -> None:
        """``tensors``: as many as there are ``inputs``, then those that each call allocates."""
        self._allocated = [
            (x.shape, x.stride(), x.dtype) for x in tensors[inputs:] if x is not None
        ]
        self._launches = [CachedLaunch(launch, tensors) for launch in launches if launch.programs]

    def __call__(self, inputs: CallTensors) -> Tensor | None:
        query = inputs[0]
        assert query is not None
        allocated = [
            query.new_empty_strided(*sizes, dtype=dtype) for *sizes, dtype in self._allocated
        ]
        tensors = (*inputs, *allocated)
        with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
            try:
                for launch in self._launches:
                    launch(tensors)
            except NotImplementedError:
                # Without the cache, the next implementation takes the call or the error is raised.
                return None
        return allocated[0]


class CachedLaunch:
    """A launch without its tensors."""

    def __init__(self, launch: Launch, tensors: CallTensors) -> None:
        self._kernel, self._programs = launch.kernel, launch.programs
        self._arguments, self._constants = list(launch.arguments), launch.constants
        self._makers: list[tuple[int, _MakeArgument]] = []
        for index, argument in enumerate(launch.arguments):
            if (maker := _argument_maker(argument, tensors)) is not None:
                self._makers.append((index, maker))
                # The cache keeps no tensor alive.
                self._arguments[index] = None
        # Compiled code also takes the constants that are compiled into it, and ignores them.
        names = launch.kernel.arg_names[len(launch.arguments) :]
        self._ignored = [launch.constants[name] for name in names]
        self._compiled: Any = None

    def __call__(self, tensors: CallTensors) -> None:
        arguments = self._arguments.copy()
        for index, maker in self._makers:
            arguments[index] = maker(tensors)
        if self._compiled is None:
            # The interpreter compiles nothing: there this branch runs every time.
            self._compiled = start(self._kernel, self._programs, arguments, self._constants)
        else:
            self._compiled[(self._programs, 1, 1)](*arguments, *self._ignored)


def _argument_maker(argument: Any, tensors: CallTensors) -> _MakeArgument | None:
    """How to make an argument like this one; None if it is the same for all tensors."""
    if isinstance(argument, Tensor):
        return _tensor_selector(argument, tensors)
    if isinstance(argument, TensorDescriptor):
        select, template = _tensor_selector(argument.base, tensors), copy.copy(argument)
        template.base = None

        def describe(others: CallTensors) -> TensorDescriptor:
            # Its constructor would check sizes and strides again.
            descriptor = copy.copy(template)
            descriptor.base = select(others)
            return descriptor

        return describe
    if isinstance(argument, tuple) and any(isinstance(part, Tensor) for part in argument):
        select, rest = _tensor_selector(argument[0], tensors), argument[1:]
        return lambda others: (select(others), *rest)
    return None


def _tensor_selector(tensor: Tensor, tensors: CallTensors) -> _MakeArgument:
    """Selects the tensor of a call that begins at the same address, viewed in the same dtype."""
    matches = [
        (index, candidate)
        for index, candidate in enumerate(tensors)
        if candidate is not None and candidate.data_ptr() == tensor.data_ptr()
    ]
    if len(matches) != 1:
        raise _ForeignTensor
    ((index, match),), dtype = matches, tensor.dtype
    if match.dtype == dtype:
        return lambda others: others[index]
    return lambda others: others[index].view(dtype)  # type: ignore[union-attr]
