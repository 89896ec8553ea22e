"""A matrix product for each expert, over rows that lie in the experts' order.

The number of rows of an expert depends on the data, so tracing cannot follow the loop over experts.
The products are operators of torch's library, which tracing does not look into. The derivatives of
each are products of the same two kinds, to any order.

Shape letters: S rows, E experts, I input channels, O output channels. ``ends_E`` counts, for each
expert, the rows of all experts up to and with it; the last of them is S.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.attention import torch_state

# The bfloat16 channels in 16 bytes, which torch's grouped kernels read at once.
ALIGNED_CHANNELS = 8


def each_expert(x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """y_s = W_e x_s as `grouped_linear`, also under torch.func, forward mode and tracing.

    A custom operator has no rule for these modes. In them every expert computes every row.
    """
    if not torch_state.needs_definition():
        return grouped_linear(x_SI, weight_EOI, ends_E)
    start_E = F.pad(ends_E[:-1], (1, 0))
    row_S1 = torch.arange(x_SI.shape[0], device=x_SI.device)[:, None]
    y_SO = x_SI.new_zeros(())
    for weight_OI, start, end in zip(weight_EOI, start_E, ends_E, strict=True):
        visits_S1 = (row_S1 >= start) & (row_S1 < end)
        y_SO = y_SO + torch.where(visits_S1, F.linear(x_SI, weight_OI), 0.0)
    return y_SO


@torch.library.custom_op("sigmoid_attention::grouped_linear", mutates_args=())
def grouped_linear(x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """y_s = W_e x_s for every row s of an expert e, (S, O); an expert without rows costs nothing.

    Example:
        >>> weight = torch.stack([torch.eye(2), 3 * torch.eye(2)])
        >>> grouped_linear(torch.ones(3, 2), weight, torch.tensor([1, 3])).tolist()
        [[1.0, 1.0], [3.0, 3.0], [3.0, 3.0]]
    """
    if takes_grouped_mm(x_SI, weight_EOI):
        return F.grouped_mm(x_SI.contiguous(), weight_EOI.mT, offs=ends_E.int())
    y_SO = x_SI.new_empty(x_SI.shape[0], weight_EOI.shape[1])
    for expert, (start, end) in enumerate(_ranges(ends_E, len(x_SI))):
        torch.mm(x_SI[start:end], weight_EOI[expert].T, out=y_SO[start:end])
    return y_SO


@torch.library.custom_op("sigmoid_attention::grouped_outer", mutates_args=())
def grouped_outer(y_SO: Tensor, x_SI: Tensor, ends_E: Tensor) -> Tensor:
    """The sum of y_s x_s^T over the rows s of each expert, (E, O, I); zero where there are none."""
    if takes_grouped_mm(y_SO, x_SI):
        product_EOI = F.grouped_mm(y_SO.contiguous().mT, x_SI.contiguous(), offs=ends_E.int())
        # The result of a grouped kernel for an expert without rows is not documented.
        empty_E = ends_E.diff(prepend=ends_E.new_zeros(1)) == 0
        return product_EOI.masked_fill_(empty_E[:, None, None], 0)
    product_EOI = x_SI.new_empty(len(ends_E), y_SO.shape[1], x_SI.shape[1])
    for expert, (start, end) in enumerate(_ranges(ends_E, len(x_SI))):
        torch.mm(y_SO[start:end].T, x_SI[start:end], out=product_EOI[expert])
    return product_EOI


def takes_grouped_mm(*operands: Tensor) -> bool:
    """True if torch's grouped kernel applies: aligned bfloat16 on a GPU of 2020 or later.

    For other operands torch either refuses the product or loops over experts, as this file does.
    """
    return all(
        operand.device.type == "cuda"
        and operand.dtype == torch.bfloat16
        and operand.shape[-1] % ALIGNED_CHANNELS == 0
        and operand.shape[-2] % (ALIGNED_CHANNELS if operand.dim() == 3 else 1) == 0
        and torch.cuda.get_device_capability(operand.device) >= (8, 0)
        for operand in operands
    )


def _ranges(ends_E: Tensor, rows: int) -> list[tuple[int, int]]:
    """The first row and the end of each expert; ``ValueError`` for rows of no expert."""
    ends = ends_E.tolist()
    if ends[-1] != rows:
        raise ValueError(
            f"experts: {rows - ends[-1]} visits are to experts beyond the last, {len(ends) - 1}"
        )
    return list(pairwise([0, *ends]))


@grouped_linear.register_fake
def _(x_SI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return x_SI.new_empty(x_SI.shape[0], weight_EOI.shape[1])


@grouped_outer.register_fake
def _(y_SO: Tensor, x_SI: Tensor, ends_E: Tensor) -> Tensor:
    return x_SI.new_empty(ends_E.shape[0], y_SO.shape[1], x_SI.shape[1])


def _keep(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx, grad_SO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_SI, weight_EOI, ends_E = ctx.saved_tensors
    x_wanted, weight_wanted, _ = ctx.needs_input_grad
    return (
        grouped_linear(grad_SO, weight_EOI.mT, ends_E) if x_wanted else None,
        grouped_outer(grad_SO, x_SI, ends_E) if weight_wanted else None,
        None,
    )


def _outer_backward(ctx, grad_EOI: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    y_SO, x_SI, ends_E = ctx.saved_tensors
    y_wanted, x_wanted, _ = ctx.needs_input_grad
    return (
        grouped_linear(x_SI, grad_EOI, ends_E) if y_wanted else None,
        grouped_linear(y_SO, grad_EOI.mT, ends_E) if x_wanted else None,
        None,
    )


grouped_linear.register_autograd(_linear_backward, setup_context=_keep)
grouped_outer.register_autograd(_outer_backward, setup_context=_keep)
