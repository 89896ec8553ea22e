"""The operator's launches for a call on a given GPU, compiled for that GPU and not run.

The tensors of the call are on the CPU. Triton derives the types of arguments, and which are 1 or
multiples of 16, at a launch; here they are derived from the same arguments.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sigmoid_attention.attention.impl.triton import call, configs
from sigmoid_attention.attention.impl.triton.configs import Device
from tests.support.attention.cross_compile import Compiled, cross_compile

H200 = Device("NVIDIA H200", (9, 0), 227 * 1024)
B200 = Device("NVIDIA B200", (10, 0), 227 * 1024)
A100 = Device("NVIDIA A100", (8, 0), 163 * 1024)
L40S = Device("NVIDIA L40S", (8, 9), 99 * 1024)

_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
_OPTIONS = ("num_warps", "num_stages")


class Launch:
    """One kernel with its arguments."""

    def __init__(self, kernel: Any, arguments: tuple, constants: dict[str, Any]) -> None:
        self.kernel = kernel
        self.options = {name: constants.pop(name) for name in _OPTIONS if name in constants}
        names = kernel.arg_names
        self.constants = {(names.index(name),): value for name, value in constants.items()}
        self.aligned: list[tuple[int, ...]] = []
        plain = {param.name for param in kernel.params if param.do_not_specialize}
        self.signature = {
            name: self._type(value, (place,), name not in plain)
            for place, (name, value) in enumerate(zip(names, arguments, strict=False))
        }
        self.blocks = {name: constants.get(name) for name in ("BLOCK_Q", "BLOCK_K")}

    def _type(self, value: Any, place: tuple[int, ...], specialized: bool) -> Any:
        if isinstance(value, tuple):
            return tuple(
                self._type(part, (*place, index), True) for index, part in enumerate(value)
            )
        if isinstance(value, TensorDescriptor):
            block = ", ".join(map(str, value.block_shape))
            return f"tensordesc<{_TYPES[value.base.dtype]}[{block}]>"
        if value is None or (specialized and isinstance(value, int) and value == 1):
            self.constants[place] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        number = value.data_ptr() if isinstance(value, Tensor) else value
        if specialized and number % 16 == 0:
            self.aligned.append(place)
        if isinstance(value, Tensor):
            return f"*{_TYPES[value.dtype]}"
        return "i32" if abs(value) < 2**31 else "i64"

    def compiled(self, device: Device) -> Compiled:
        major, minor = device.capability
        return cross_compile(
            self.kernel, self.signature, self.constants, aligned=self.aligned,
            target=10 * major + minor, **self.options,
        )  # fmt: skip

    def scores(self) -> int:
        """Of a tile."""
        return self.blocks["BLOCK_Q"] * self.blocks["BLOCK_K"]


def launches(device: Device, function: Callable[[], Any]) -> dict[str, Launch]:
    """What a call launches, by the kernel's name."""
    recorded = {}

    def record(kernel, programs, *arguments, **constants) -> None:
        recorded[kernel.fn.__name__] = Launch(kernel, arguments, constants)

    with mock.patch.object(call, "launch", record), mock.patch.object(configs, "NO_DEVICE", device):
        function()
    return recorded
