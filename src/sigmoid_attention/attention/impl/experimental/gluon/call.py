"""From the tensors of a call to the launches of the Hopper kernels.

The plan (``triton/plan.py``) and the preparation of tensors are those of the portable kernels.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from sigmoid_attention.attention.impl.experimental.gluon import configs, schedule
from sigmoid_attention.attention.impl.experimental.gluon.backward import backward
from sigmoid_attention.attention.impl.experimental.gluon.configs import KEYS, Features
from sigmoid_attention.attention.impl.experimental.gluon.forward import forward
from sigmoid_attention.attention.impl.experimental.gluon.walk import UNLIMITED
from sigmoid_attention.attention.impl.triton.call import Call, cdiv
from sigmoid_attention.attention.impl.triton.configs import multiprocessors

_TYPES = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float32: gl.float32,
}


def fetchable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if the copy engine cannot read its memory."""
    unit = 16 // tensor.element_size()
    aligned = tensor.data_ptr() % 16 == 0 and tensor.stride(-1) == 1
    for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
        aligned = aligned and (size == 1 or (stride > 0 and stride % unit == 0))
    return tensor if aligned else tensor.clone(memory_format=torch.contiguous_format)


def descriptor(tensor: Tensor, box: tuple[int, int]) -> TensorDescriptor:
    """A descriptor of a (B, H, N, D) tensor, in boxes of rows and columns of one head."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    # The stride of a dimension of size 1 is arbitrary, but the copy engine checks it.
    strides = [64 if size == 1 else stride for size, stride in pairs][:-1]
    shape = [1, 1, *box]
    layout: Any = gl.NVMMASharedLayout.get_default_for(shape, _TYPES[tensor.dtype])
    return TensorDescriptor(tensor, list(tensor.shape), [*strides, 1], shape, layout)


class HopperCall(Call):
    """A dense call of bf16 or fp16 with one bias for each head, or none."""

    @property
    def group(self) -> int:
        return self.heads // self.key_heads

    def of_heads(self, term: Tensor | None) -> Tensor | None:
        """A bias or slopes as (B, H) numbers in fp32."""
        if term is None:
            return None
        if term.dim() > 2 or term is self.bias:
            term = term.reshape((1,) * (4 - term.dim()) + tuple(term.shape))[:, :, 0, 0]
        return term.expand(self.sequences, self.heads).float().contiguous()

    def kernel_features(self, planned: bool, shift: int) -> Features:
        settings = self.settings
        return Features(
            window=settings.left >= 0 or settings.right >= 0,
            tails=planned,
            bias=self.bias is not None,
            slopes=self.slopes is not None,
            shift=shift,
        )

    def work(
        self, rows: int, columns: int, window: tuple[int, int], blocks: tuple[int, int],
        group: int, spans: Tensor | None,
    ) -> tuple[Tensor | None, int]:  # fmt: skip
        """The list of work, None without a plan, and the number of items."""
        items = self.sequences * self.heads // group * cdiv(rows, blocks[0])
        if spans is None:
            return None, items
        span = self.configs.span
        return schedule.work(spans, rows, columns, window, blocks[1], group, span), items

    def launch(
        self, kernel: Any, config: Any, tensors: dict[str, Tensor], work: tuple[Tensor | None, int]
    ) -> None:
        """Launch one thread block for each multiprocessor, which runs for the whole call."""
        settings = self.settings
        listed, items = work
        kernel[(min(multiprocessors(self.query.device), items),)](
            **{name: descriptor(tensors[name], box) for name, box in config.boxes.items()},
            work=listed, items=items,
            bias=self.of_heads(self.bias), slopes=self.of_heads(self.slopes),
            scale=settings.scale, constant=settings.constant,
            left=settings.left if settings.left >= 0 else UNLIMITED.value,
            right=settings.right if settings.right >= 0 else UNLIMITED.value,
            queries=self.layout.max_q, keys=self.layout.max_k, heads=self.heads, group=self.group,
            CONFIG=config, num_warps=4,
        )  # fmt: skip

    def forward(self, out: Tensor) -> None:
        settings, layout = self.settings, self.layout
        with self.on_device:
            spans = self.spans(of_keys=False)
            shift = 15 if self.query.dtype == torch.float16 else 0
            config = configs.forward(self.head_dim, self.kernel_features(spans is not None, shift))
            blocks = config.block_q, config.block_k
            window = settings.left, settings.right
            work = self.work(layout.max_q, layout.max_k, window, blocks, 1, spans)
            tensors = {
                "query": fetchable(self.query),
                "key": fetchable(self.key),
                "value": fetchable(self.value),
                "out": out,
            }
            self.launch(forward, config, tensors, work)

    def keys_pass(
        self, grad_out: Tensor, on_query: Tensor, on_key: Tensor, on_value: Tensor
    ) -> None:
        """Fill ``on_key`` and ``on_value``; add to ``on_query``, fp32 and without ``scale``."""
        settings, layout = self.settings, self.layout
        with self.on_device:
            spans = self.spans(of_keys=True)
            config = configs.backward(self.head_dim, self.kernel_features(spans is not None, 0))
            # The window of a key is the mirror image of that of a query.
            window, blocks = (settings.right, settings.left), (KEYS, config.block_q)
            work = self.work(layout.max_k, layout.max_q, window, blocks, self.group, spans)
            tensors = {
                "query": fetchable(self.query),
                "key": fetchable(self.key),
                "value": fetchable(self.value),
                "on_out": fetchable(grad_out),
                "on_query": on_query,
                "on_key": on_key,
                "on_value": on_value,
            }
            self.launch(backward, config, tensors, work)
