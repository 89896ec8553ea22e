"""What a call of the Triton kernels that was made before needs: its launches, for other tensors.

A launch through Triton's own door looks at every argument to find the code that was compiled for
such ones. Arguments of a kind that was seen before have found it: the code is kept, and started.
"""

import copy
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

# A call of a kind is kept the second time. To find out what to keep takes as long as the call, and
# a cache that grows by a token a step never brings the same kind again.
WORTHWHILE = 2

# All tensors of a call: its own, the answer, and what lies between two launches.
Filled = tuple[Tensor | None, ...]
# An argument of a launch, from these.
_Fill = Callable[[Filled], Any]


class _Unknown(Exception):
    """A launch reads what is neither a tensor of the call nor filled by a launch."""


def surroundings() -> Hashable:
    """What a call depends on beside its arguments."""
    return activation.tanh_is_used()


def known(tensors: Filled, problem: Problem) -> Callable[[Filled], Tensor | None]:
    """The answer for other tensors; where a call needs more than its launches, never one.

    To find that out takes longer than the launches, so it is kept, too.
    """
    with recorded() as found:
        out = _attended(problem)
    if out is None or out.numel() == 0:
        return _never
    try:
        return _Known((*tensors, out, *found.rooms), len(tensors), found.launches)
    except _Unknown:
        return _never


def _never(tensors: Filled) -> None:
    return None


def _attended(problem: Problem) -> Tensor | None:
    """The answer of the kernels that the public functions take; None where these refuse."""
    try:
        return dispatch.BACKENDS["triton"].attend(problem)
    except NotImplementedError:
        return None


class _Known:
    def __init__(self, filled: Filled, given: int, launches: list[Launch]) -> None:
        """``filled``: as many tensors as are ``given``, then those that each call makes anew."""
        self._made = [(x.shape, x.stride(), x.dtype) for x in filled[given:] if x is not None]
        self._launches = [_Relaunch(launch, filled) for launch in launches if launch.programs]

    def __call__(self, tensors: Filled) -> Tensor | None:
        query = tensors[0]
        assert query is not None
        made = [query.new_empty_strided(*sizes, dtype=dtype) for *sizes, dtype in self._made]
        filled = (*tensors, *made)
        with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
            try:
                for relaunch in self._launches:
                    relaunch(filled)
            except NotImplementedError:
                # Looked at in full, the call goes to whoever is next, or says why there is nobody.
                return None
        return made[0]


class _Relaunch:
    """A launch whose tensors are still open."""

    def __init__(self, launch: Launch, filled: Filled) -> None:
        self._kernel, self._programs = launch.kernel, launch.programs
        self._arguments, self._constants = list(launch.arguments), launch.constants
        self._open: list[tuple[int, _Fill]] = []
        for place, argument in enumerate(launch.arguments):
            if (fill := _filling(argument, filled)) is not None:
                self._open.append((place, fill))
                # Nobody's tensors are kept.
                self._arguments[place] = None
        # Compiled code takes what is compiled into it, too, and passes over it.
        names = launch.kernel.arg_names[len(launch.arguments) :]
        self._fixed = [launch.constants[name] for name in names]
        self._compiled: Any = None

    def __call__(self, filled: Filled) -> None:
        arguments = self._arguments.copy()
        for place, fill in self._open:
            arguments[place] = fill(filled)
        if self._compiled is None:
            # The interpreter compiles nothing, and so comes by here every time.
            self._compiled = start(self._kernel, self._programs, arguments, self._constants)
        else:
            self._compiled[(self._programs, 1, 1)](*arguments, *self._fixed)


def _filling(argument: Any, filled: Filled) -> _Fill | None:
    """How to come by an argument like this one; None if it is the same for all tensors."""
    if isinstance(argument, Tensor):
        return _tensor(argument, filled)
    if isinstance(argument, TensorDescriptor):
        base, empty = _tensor(argument.base, filled), copy.copy(argument)
        empty.base = None

        def described(tensors: Filled) -> TensorDescriptor:
            # Not made anew: its checks of sizes and strides were made, too.
            found = copy.copy(empty)
            found.base = base(tensors)
            return found

        return described
    if isinstance(argument, tuple) and any(isinstance(part, Tensor) for part in argument):
        first, rest = _tensor(argument[0], filled), argument[1:]
        return lambda tensors: (first(tensors), *rest)
    return None


def _tensor(wanted: Tensor, filled: Filled) -> _Fill:
    """Where a tensor is found again: the one that begins at the same address, maybe as bytes."""
    places = [
        place
        for place, tensor in enumerate(filled)
        if tensor is not None and tensor.data_ptr() == wanted.data_ptr()
    ]
    if len(places) != 1:
        raise _Unknown
    place, dtype = places[0], wanted.dtype
    found = filled[place]
    if found is not None and found.dtype == dtype:
        return lambda tensors: tensors[place]
    return lambda tensors: tensors[place].view(dtype)  # type: ignore[union-attr]
