"""The functions of kernels as Python, and their launch on an emulator of Gluon's language."""

import random
import types
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language

from tests.support.gluon.emulator import Block, Machine, Pointer, tile

OURS = "sigmoid_attention.attention"


def _namespace(machine: Machine) -> tuple[types.SimpleNamespace, dict[str, Any]]:
    """Stand-ins for ``gl`` and for the names that kernels import from Hopper's module."""

    def full(shape, value, dtype, layout):
        return tile(torch.full(list(shape), float(value), dtype=torch.float64))

    def limit(function, of_numbers):
        def either(a, b):
            tensors = isinstance(a, Tensor) or isinstance(b, Tensor)
            return function(a, b) if tensors else of_numbers(a, b)

        return either

    gl = types.SimpleNamespace(
        constexpr=lambda value: value,
        float32=torch.float64, int32=torch.int64, int64=torch.int64,
        bfloat16=torch.bfloat16, float16=torch.float16,
        static_range=range,
        program_id=machine.program_id, num_programs=machine.num_programs, load=machine.load,
        allocate_shared_memory=machine.allocate_shared_memory,
        inline_asm_elementwise=machine.inline_asm_elementwise,
        where=machine.where, abs=abs, exp2=torch.exp2,
        maximum=limit(torch.maximum, max), minimum=limit(torch.minimum, min),
        full=full, full_like=lambda like, value: tile(torch.full_like(like, value)),
        arange=lambda start, end, layout: tile(torch.arange(start, end)),
        convert_layout=lambda value, layout: value,
        warp_specialize=lambda *arguments: machine.block.specialize(*arguments),
        DotOperandLayout=lambda **arguments: None, SliceLayout=lambda *arguments: None,
        NVMMADistributedLayout=lambda *arguments: None,
        NVMMASharedLayout=types.SimpleNamespace(get_default_for=lambda shape, dtype: None),
    )  # fmt: skip
    mbarrier = types.SimpleNamespace(
        MBarrierLayout=lambda: None, init=machine.init, expect=machine.expect,
        arrive=machine.arrive, wait=machine.wait,
    )  # fmt: skip
    tma = types.SimpleNamespace(
        async_copy_global_to_shared=machine.async_copy_global_to_shared,
        async_copy_shared_to_global=machine.async_copy_shared_to_global,
        store_wait=machine.store_wait,
    )
    hopper = {
        "mbarrier": mbarrier, "tma": tma, "fence_async_shared": machine.fence_async_shared,
        "warpgroup_mma": machine.warpgroup_mma, "async_reduce": machine.async_reduce,
        "warpgroup_mma_wait": machine.warpgroup_mma_wait,
    }  # fmt: skip
    return gl, hopper


class Translation:
    """Kernels' functions as Python, with a machine in the place of Gluon's language."""

    def __init__(self, machine: Machine) -> None:
        self.gl, self.hopper = _namespace(machine)
        self.known: dict[int, Any] = {}

    def of(self, function: Any) -> Any:
        """A function of a kernel, and the functions that it calls."""
        raw = function.fn
        if id(raw) not in self.known:
            names = dict(raw.__globals__)
            plain = types.FunctionType(raw.__code__, names, raw.__name__, raw.__defaults__)
            self.known[id(raw)] = plain
            for name in raw.__code__.co_names:
                if name in names:
                    names[name] = self.changed(name, names[name])
        return self.known[id(raw)]

    def changed(self, name: str, value: Any) -> Any:
        """What a name of the kernel's module stands for."""
        if name in self.hopper:
            return self.hopper[name]
        if value is language or value is triton.language:
            return self.gl
        if isinstance(value, triton.runtime.jit.JITFunction):
            return self.of(value)
        if isinstance(value, triton.language.constexpr):
            return value.value
        if isinstance(value, types.ModuleType) and value.__name__.startswith(OURS):
            return Module(value, self)
        return value


class Module:
    """One of the project's modules, whose functions are translated when they are looked up."""

    def __init__(self, module: types.ModuleType, translation: Translation) -> None:
        self.module, self.translation = module, translation

    def __getattr__(self, name: str) -> Any:
        return self.translation.changed(name, getattr(self.module, name))


def plain(module: types.ModuleType, machine: Machine) -> Module:
    """A module of kernels' functions, for calls one by one."""
    return Module(module, Translation(machine))


def launch(kernel: Any, programs: int, seed: int, **arguments: Any) -> None:
    """Run a Gluon kernel in ``programs`` thread blocks, one after the other.

    Tensors become pointers, a :class:`Descriptor` stays what it is. Raises :class:`RaceError`.
    """
    machine = Machine()
    translated = Translation(machine).of(kernel)
    inputs = {
        name: Pointer(value) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    generator = random.Random(seed)
    for program in range(programs):
        machine.block = Block(program, programs, generator)
        translated(**inputs)
