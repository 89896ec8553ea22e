"""The few PTX instructions that the kernels use inline, on float64 tensors.

``run`` takes the text of an inline assembly and the values of its operands in the compiler's order:
the results from $0 on, then the arguments. Results are exact: an approximate instruction gives the
exact value, and a conversion to a narrower type keeps all digits; ``rounding`` makes such a
conversion round.
"""

import math
import re
import struct
from unittest import mock

import torch
from torch import Tensor

_OPERANDS = re.compile(r"\s*,\s*")


def _number(text: str) -> float:
    """0f3F800000: the bits of an fp32."""
    return struct.unpack(">f", bytes.fromhex(text[2:]))[0]


def _smaller(a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(*torch.broadcast_tensors(torch.as_tensor(a), torch.as_tensor(b)))


def _packed(dtype: torch.dtype | None = None):
    """Its second operand goes into the lower half, which holds the first of two elements."""

    def convert(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        return (low, high) if dtype is None else (low.to(dtype).double(), high.to(dtype).double())

    return convert


_COMPUTE = {
    "neg.f32": lambda a: -a,
    "min.NaN.f32": _smaller,
    "ex2.approx.ftz.f32": torch.exp2,
    "rcp.approx.ftz.f32": torch.reciprocal,
    "add.f32": lambda a, b: a + b,
    "mul.f32": lambda a, b: a * b,
    "cvt.rn.bf16x2.f32": _packed(),
    "cvt.rn.f16x2.f32": _packed(),
}
_ROUNDING = {
    "cvt.rn.bf16x2.f32": _packed(torch.bfloat16),
    "cvt.rn.f16x2.f32": _packed(torch.float16),
}


def rounding():
    """Within this context a conversion loses what it loses."""
    return mock.patch.dict(_COMPUTE, _ROUNDING)


def run(text: str, constraints: str, arguments: list[Tensor], pack: int) -> Tensor:
    """The elementwise result, of the arguments' shape; ``pack`` neighbours share a block of it.

    The neighbours are taken along the last dimension, which is where a warp group's registers
    have them; which they are changes nothing.
    """
    shape = torch.broadcast_shapes(*(argument.shape for argument in arguments))
    results = constraints.replace(" ", "").split(",")
    count = sum(each.startswith("=") for each in results)
    values: dict[str, Tensor | tuple] = {}
    place = count
    for argument in arguments:
        spread = argument.expand(shape).double()
        for neighbour in range(pack):
            values[f"${place}"] = spread[..., neighbour::pack]
            place += 1
    assert place == len(results), (constraints, place)
    for line in text.strip().strip("{}").split(";"):
        words = line.split(None, 1)
        if not words or words[0] == ".reg":
            continue
        name, operands = words
        target, *sources = _OPERANDS.split(operands.strip())
        values[target] = _COMPUTE[name](
            *(_number(each) if each.startswith("0f") else values[each] for each in sources)
        )
    actual: list[Tensor] = []
    for place in range(count):
        result = values[f"${place}"]
        actual += result if isinstance(result, tuple) else (result,)
    assert len(actual) == pack, (text, len(actual))
    out = torch.empty(shape, dtype=torch.float64)
    for neighbour, each in enumerate(actual):
        out[..., neighbour::pack] = each
    assert math.prod(shape) == out.numel()
    return out
