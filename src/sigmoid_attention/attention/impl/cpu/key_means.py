"""The product of each query with the mean of its visible keys, as operators of torch's library.

Shape letters: B batch, H query heads, G key heads, Q queries, K keys, D head dim.
"""

import ctypes
from ctypes import c_double as Real
from ctypes import c_int64 as Integer

import torch
from torch import Tensor

from sigmoid_attention.attention.impl.cpu import abi
from sigmoid_attention.attention.impl.layout import empty_output, with_contiguous_rows


class MeanArguments(ctypes.Structure):
    """The struct ``MeanCall`` of kernel/key_means.h: the same names in the same order."""

    _fields_ = [
        *((name, Integer) for name in ("dtype", "threads", "sequences", "heads", "key_heads")),
        *((name, Integer) for name in ("queries", "keys", "head_dim", "left", "right")),
        ("query", abi.Rows),
        ("key", abi.Rows),
        ("products", Integer),
        ("grad_products", Integer),
        ("grad_query", abi.Rows),
        ("grad_key", abi.Rows),
        ("scale", Real),
    ]


class NextBiasArguments(ctypes.Structure):
    """The struct ``NextBiasCall`` of kernel/key_means.h: the same names in the same order."""

    _fields_ = [
        *((name, Integer) for name in ("dtype", "sequences", "heads", "key_heads", "head_dim")),
        *((name, abi.Rows) for name in ("query", "entering", "leaving")),
        *((name, Integer) for name in ("sums", "strength", "offset", "bias")),
        ("factor", Real),
    ]


_NEXT = abi.packer(NextBiasArguments)


def _run(
    function: str,
    query: Tensor,
    key: Tensor,
    scale: float,
    left: int,
    right: int,
    products: Tensor | None = None,
    grad_products: Tensor | None = None,
    gradients: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    batch, heads, queries, head_dim = query.shape
    block = MeanArguments(
        abi.dtype_code(query.dtype),
        torch.get_num_threads(),
        *(batch, heads, key.shape[1], queries, key.shape[2], head_dim, left, right),
        *(abi.Rows(*abi.rows(tensor)) for tensor in (query, key)),
        *(abi.address(tensor) for tensor in (products, grad_products)),
        *(abi.Rows(*abi.rows(tensor)) for tensor in gradients),
        scale,
    )
    abi.run(function, bytes(block))


def next_bias(
    query: Tensor,
    key: Tensor,
    token: int,
    leaving: int,
    sums: Tensor,
    strength_H: Tensor,
    offset_H: Tensor,
    factor: float,
) -> Tensor | None:
    """offset - strength factor q · sum of a decoding step, (B, H, 1, 1).

    ``query`` is (B, H, 1, D). ``sums`` (B, G, 1, D) are contiguous and in float64, and change in
    place: the ``key`` (B, G, K, D) at ``token`` is added, and the one at ``leaving`` is subtracted
    if that is not negative. None, with nothing changed, without a kernel. This is no operator of
    torch's library: neither autograd nor a tracer may take part in the call.
    """
    library = abi.loaded()
    if library is None:
        return None
    query, key = with_contiguous_rows(query), with_contiguous_rows(key)
    batch, heads, _, head_dim = query.shape
    bias = strength_H.new_empty((batch, heads, 1, 1))
    data, *strides = abi.rows(key)
    row = key.element_size() * strides[-1]
    block = _NEXT.pack(
        *(abi.dtype_code(query.dtype), batch, heads, key.shape[1], head_dim),
        *abi.rows(query),
        *(data + token * row, *strides),
        *(data + leaving * row if leaving >= 0 else 0, *strides),
        *(sums.data_ptr(), strength_H.data_ptr(), offset_H.data_ptr(), bias.data_ptr()),
        factor,
    )
    # Without `abi.run`, which would look the library up again: a step notices it.
    if library.sigmoid_attention_next_bias(block):
        raise MemoryError("sigmoid attention: not enough memory for the mean of the keys")
    return bias


@torch.library.custom_op("sigmoid_attention::cpu_mean_products", mutates_args=())
def mean_products(query: Tensor, key: Tensor, scale: float, left: int, right: int) -> Tensor:
    """s q_i · k̄_i in fp32, (B, H, Q), with k̄_i the mean of the keys in query i's window.

    It is 0 for a query that sees no key. It is linear in the queries and in the keys.
    """
    query, key = with_contiguous_rows(query), with_contiguous_rows(key)
    products = query.new_zeros(query.shape[:3], dtype=torch.float32)
    if products.numel():
        _run("sigmoid_attention_mean_products", query, key, scale, left, right, products)
    return products


@mean_products.register_fake
def _(query, key, scale, left, right):
    return query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("sigmoid_attention::cpu_mean_gradients", mutates_args=())
def mean_gradients(
    grad: Tensor, query: Tensor, key: Tensor, scale: float, left: int, right: int
) -> tuple[Tensor, Tensor]:
    """Gradients of query and key for the gradient (B, H, Q) of their ``mean_products``."""
    query, key = with_contiguous_rows(query), with_contiguous_rows(key)
    grad = grad.float().contiguous()
    gradients = empty_output(query, query.shape[3]), empty_output(key, key.shape[3])
    if query.numel():
        name = "sigmoid_attention_mean_gradients"
        _run(name, query, key, scale, left, right, None, grad, gradients)
    else:
        gradients[1].zero_()
    return gradients


@mean_gradients.register_fake
def _(grad, query, key, scale, left, right):
    return empty_output(query, query.shape[3]), empty_output(key, key.shape[3])


def _save_products(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _products_gradients(ctx, grad):
    return *mean_gradients(grad, *ctx.saved_tensors, *ctx.settings), None, None, None


def _save_gradients(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _gradients_gradients(ctx, along_query, along_key):
    # The products are bilinear: the gradients' own derivatives are such products and gradients.
    grad, query, key = ctx.saved_tensors
    on_grad = mean_products(along_query, key, *ctx.settings)
    on_grad = on_grad + mean_products(query, along_key, *ctx.settings)
    on_query, _ = mean_gradients(grad, query, along_key, *ctx.settings)
    _, on_key = mean_gradients(grad, along_query, key, *ctx.settings)
    return on_grad.to(grad.dtype), on_query, on_key, None, None, None


mean_products.register_autograd(_products_gradients, setup_context=_save_products)
mean_gradients.register_autograd(_gradients_gradients, setup_context=_save_gradients)
