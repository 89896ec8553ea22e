"""The kernels' calls in tests: emulated with tensors, or compiled from a configuration.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from sigmoid_attention.attention.impl.experimental.gluon.backward import backward
from sigmoid_attention.attention.impl.experimental.gluon.configs import (
    KEYS,
    Backward,
    Features,
    Forward,
)
from sigmoid_attention.attention.impl.experimental.gluon.forward import forward
from sigmoid_attention.attention.impl.experimental.gluon.walk import UNLIMITED
from sigmoid_attention.attention.impl.triton.call import cdiv
from tests.support.attention.cross_compile import Compiled, cross_compile
from tests.support.gluon import listing
from tests.support.gluon.emulator import Descriptor
from tests.support.gluon.translation import launch

PLAIN = Features(window=False, tails=False, bias=False, slopes=False, shift=0)
EVERYTHING = replace(PLAIN, window=True, tails=True)


@dataclass
class Case:
    """A call in float64, its window, and how it is cut; ``spans`` as a plan has them."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    left: int = -1
    right: int = -1
    bias: bool = False
    slopes: bool = False
    spans: Tensor | None = None
    of_keys: Tensor | None = None
    seed: int = 0

    def __str__(self) -> str:
        sizes = f"B{self.batch}-H{self.heads}-G{self.key_heads}-Q{self.queries}-K{self.keys}"
        window = f"-window{self.left},{self.right}"
        flags = (("bias", self.bias), ("slopes", self.slopes), ("planned", self.spans is not None))
        return sizes + window + "".join(f"-{name}" for name, on in flags if on)

    @property
    def features(self) -> Features:
        return Features(
            window=self.left >= 0 or self.right >= 0,
            tails=self.spans is not None,
            bias=self.bias,
            slopes=self.slopes,
            shift=0,
        )

    @property
    def constant(self) -> float:
        """Far down in the tail where there is a plan, which says so of some tiles."""
        return -2.0 if self.spans is None else -18.0

    def tensors(self, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Query, key, value, and the gradient of the output."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = [(self.heads, self.queries), *[(self.key_heads, self.keys)] * 2]
        shapes.append((self.heads, self.queries))
        tensors = [
            torch.randn(self.batch, *shape, dim, generator=generator, dtype=torch.float64)
            for shape in shapes
        ]
        return tensors[0], tensors[1], tensors[2], tensors[3]

    def of_heads(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        pair = torch.rand(2, self.batch, self.heads, generator=generator, dtype=torch.float64)
        return self.constant + pair[0], pair[1]

    def numbers(self, dim: int) -> dict[str, Any]:
        bias, slopes = self.of_heads()
        return {
            "bias": bias, "slopes": slopes, "scale": dim**-0.5, "constant": self.constant,
            "left": self.left if self.left >= 0 else UNLIMITED.value,
            "right": self.right if self.right >= 0 else UNLIMITED.value,
            "queries": self.queries, "keys": self.keys, "heads": self.heads,
            "group": self.heads // self.key_heads,
        }  # fmt: skip

    def work(
        self, rows: int, columns: int, window: tuple[int, int], blocks: tuple[int, int],
        group: int, spans: Tensor | None,
    ) -> dict[str, Any]:  # fmt: skip
        items = self.batch * self.heads // group * cdiv(rows, blocks[0])
        if spans is None:
            return {"work": None, "items": items}
        seen = listing.visits(rows, columns, *window, *blocks, spans)
        return {"work": listing.work(seen, self.batch, self.heads, group), "items": items}

    def expected(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The definition, less the tiles that ``spans`` leaves out."""
        bias, slopes = self.of_heads()
        group = self.heads // self.key_heads
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
        logits = query @ key.transpose(-1, -2) * query.shape[3] ** -0.5
        logits = logits + (bias[..., None, None] if self.bias else self.constant)
        position = torch.arange(self.queries)[:, None] + self.keys - self.queries
        offset = position - torch.arange(self.keys)
        if self.slopes:
            logits = logits - slopes[..., None, None] * offset.abs()
        weights = logits.sigmoid()
        if self.left >= 0:
            weights = weights.masked_fill(offset > self.left, 0)
        if self.right >= 0:
            weights = weights.masked_fill(offset < -self.right, 0)
        if self.spans is not None:
            unit_q, unit_k = torch.arange(self.queries) // 128, torch.arange(self.keys) // 128
            first, _, _, end = self.spans[..., unit_q].unsqueeze(-1)
            weights = torch.where((unit_k >= first) & (unit_k < end), weights, 0)
        return weights @ value


def run_forward(case: Case, config: Forward, programs: int) -> Tensor:
    query, key, value, _ = case.tensors(config.head_dim)
    out = torch.full_like(query, float("nan"))
    tensors = {"query": query, "key": key, "value": value, "out": out}
    window, blocks = (case.left, case.right), (config.block_q, config.block_k)
    work = case.work(case.queries, case.keys, window, blocks, 1, case.spans)
    launch(
        forward, programs, case.seed,
        **{name: Descriptor(tensors[name], (1, 1, *box)) for name, box in config.boxes.items()},
        **case.numbers(config.head_dim), **work, CONFIG=config,
    )  # fmt: skip
    return out


def run_backward(case: Case, config: Backward, programs: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, on_out = case.tensors(config.head_dim)
    on_query = torch.zeros_like(query)
    on_key, on_value = torch.full_like(key, float("nan")), torch.full_like(value, float("nan"))
    tensors = {
        "query": query, "key": key, "value": value, "on_out": on_out,
        "on_query": on_query, "on_key": on_key, "on_value": on_value,
    }  # fmt: skip
    window, blocks = (case.right, case.left), (KEYS, config.block_q)
    group = case.heads // case.key_heads
    work = case.work(case.keys, case.queries, window, blocks, group, case.of_keys)
    sizes = {"on_query": 4}
    launch(
        backward, programs, case.seed,
        **{
            name: Descriptor(tensors[name], (1, 1, *box), itemsize=sizes.get(name, 2))
            for name, box in config.boxes.items()
        },
        **case.numbers(config.head_dim), **work, CONFIG=config,
    )  # fmt: skip
    return on_query * config.head_dim**-0.5, on_key, on_value


@dataclass
class Signature:
    """What Triton compiles a kernel for: types and constants by name, and what is aligned."""

    types: dict[str, str]
    constants: dict[str, Any]
    aligned: set[str]
    num_warps: int


def signature(
    config: Forward | Backward, dtype: str = "bf16", listed: bool | None = None
) -> Signature:
    """Of a launch with this configuration (test_launch.py); what it has none of is None.

    ``listed``: it comes with a list of work, by default where it has tails.
    """
    types = {"bf16": gl.bfloat16, "fp16": gl.float16, "fp32": gl.float32}
    actual = {}
    for name, (rows, columns) in config.boxes.items():
        kind = "fp32" if name == "on_query" else dtype
        layout = gl.NVMMASharedLayout.get_default_for([1, 1, rows, columns], types[kind])
        actual[name] = f"tensordesc<{kind}[1, 1, {rows}, {columns}],{layout!r}>"
    constants = {"CONFIG": config}
    constants |= {name: None for name in ("bias", "slopes") if not getattr(config, name)}
    if not (config.tails if listed is None else listed):
        constants["work"] = None
    actual |= dict.fromkeys(constants, "constexpr")
    pointers = {"work": "*i32", "bias": "*fp32", "slopes": "*fp32"}
    actual = pointers | {"scale": "fp32", "constant": "fp32"} | actual
    kernel = forward if isinstance(config, Forward) else backward
    in_order = {name: actual.get(name, "i32") for name in kernel.arg_names}
    return Signature(in_order, constants, pointers.keys() - constants.keys(), num_warps=4)


def compiled(config: Forward | Backward, dtype: str = "bf16") -> Compiled:
    """The kernel of a configuration as a Hopper GPU would run it."""
    types = signature(config, dtype)
    kernel = forward if isinstance(config, Forward) else backward
    return cross_compile(
        kernel,
        types.types,
        types.constants,
        aligned=sorted(types.aligned),
        num_warps=types.num_warps,
    )
