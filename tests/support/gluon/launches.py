"""Calls of the operator on the CPU, whose recorded launches run in the emulator.

All code between the public function and the two kernels runs as shipped; the kernels are replaced
where ``call.py`` launches them. The arguments of a launch are read as by the copy engine, at the
descriptors' own addresses and strides, and results are written to the same place.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import create_function_from_signature

from sigmoid_attention.attention.impl.experimental.gluon import call, ops
from sigmoid_attention.attention.impl.layout import empty_output
from sigmoid_attention.attention.impl.triton import ops as portable
from tests.support.attention.cross_compile import HOPPER
from tests.support.gluon import listing, translation
from tests.support.gluon.emulator import Descriptor
from tests.support.gluon.kernels import Signature

RESULTS = ("out", "on_query", "on_key", "on_value")


@dataclass
class Launch:
    """A kernel with its grid and everything that it was handed, options of the compiler too."""

    kernel: Any
    grid: tuple[int, ...]
    given: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        return {name: each for name, each in self.given.items() if name in self.kernel.arg_names}

    def signature(self) -> Signature:
        """What Triton would compile for these arguments, by its own reading of them."""
        backend = make_backend(GPUTarget("cuda", HOPPER, 32))
        kernel = self.kernel
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, seen, _ = bind(**self.given)
        options, types, constants, attributes = kernel._pack_args(
            backend, self.given, bound, seen, None
        )
        aligned = {
            kernel.arg_names[place] for (place,), attribute in attributes.items() if attribute
        }
        names = {kernel.arg_names[place]: value for (place,), value in constants.items()}
        return Signature(types, names, aligned, options.num_warps)

    def run(self, seed: int) -> None:
        """In the emulator, in float64, the results rounded to their dtype."""
        copies = {
            name: _copied(each)
            for name, each in self.arguments.items()
            if isinstance(each, TensorDescriptor)
        }
        (programs,) = self.grid
        translation.launch(self.kernel, programs, seed, **self.arguments | copies)
        for name in RESULTS:
            if name in copies:
                _described(self.given[name]).copy_(copies[name].tensor)


def _described(descriptor: TensorDescriptor) -> Tensor:
    """What lies where a descriptor says."""
    return descriptor.base.as_strided(descriptor.shape, descriptor.strides)


def _copied(descriptor: TensorDescriptor) -> Descriptor:
    base, box = descriptor.base, tuple(descriptor.block_shape)
    return Descriptor(
        _described(descriptor).double(), box, base.dtype, itemsize=base.element_size()
    )


def _unwritten(*arguments: Any) -> Tensor:
    """Room for a result that shows where nothing was written; a fresh one may hold the answer."""
    return empty_output(*arguments).fill_(float("nan"))


def _listed(
    spans: Tensor, rows: int, columns: int, window: tuple[int, int], tile: int, group: int,
    span: int,
) -> Tensor:  # fmt: skip
    """The list of work, for which ``schedule.py`` would launch kernels of the portable tier."""
    seen = listing.visits(rows, columns, *window, span, tile, spans, span)
    return listing.work(seen, spans.shape[1], spans.shape[2], group)


@contextmanager
def launched(
    processors: int, plan: Callable[..., Tensor | None] | None = None, seed: int = 0
) -> Iterator[list[Launch]]:
    """Calls run as on a Hopper GPU of so many multiprocessors, and are listed.

    ``plan`` finds the spans of a call, from what the constructor of ``Call`` takes; without it no
    call has any.
    """
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(**arguments: Any) -> None:
                launches.append(Launch(self.kernel, grid, arguments))
                launches[-1].run(seed)

            return run

    def spans(planned: call.HopperCall, *, of_keys: bool) -> Tensor | None:
        terms = planned.bias, planned.mask, planned.slopes, planned.layout, planned.settings
        return plan(of_keys, planned.query, planned.key, planned.value, *terms) if plan else None

    with ExitStack() as stack:
        for patch in (
            mock.patch.object(call, "multiprocessors", lambda device: processors),
            mock.patch.object(ops, "_unfit", lambda device: None),
            mock.patch.object(ops, "empty_output", _unwritten),
            mock.patch.object(portable, "_unfit", lambda device: None),
            mock.patch.object(call.HopperCall, "spans", spans),
            mock.patch.object(call.schedule, "work", _listed),
            mock.patch.object(call, "forward", Recorder(call.forward)),
            mock.patch.object(call, "backward", Recorder(call.backward)),
        ):
            stack.enter_context(patch)
        # On a GPU alone the operators are what they are here for the CPU as well.
        library = stack.enter_context(torch.library._scoped_library("sigmoid_attention", "IMPL"))
        library.impl("gluon_forward", ops._forward, "CPU")
        library.impl("gluon_backward", ops._backward, "CPU")
        yield launches
