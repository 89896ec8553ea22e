"""The tensors prepared by the portable tier's kernels, interpreted by Triton in another Python.

Shape letters: B batch, H query heads, I units of queries, J units of keys.
"""

from unittest import mock

from torch import Tensor
from triton.experimental.gluon import language as gl

from sigmoid_attention.attention.impl.experimental.gluon import schedule, walk
from sigmoid_attention.attention.impl.triton.call import Call


def spans(of_keys: bool, *arguments) -> Tensor | None:
    """Ranges of keys, (4, B, H, I), or of queries, (4, B, H, J), with the shipped tiles."""
    return Call(*arguments).spans(of_keys=of_keys)


def listed(together: int, *arguments) -> Tensor:
    """The list of work where so many items are worked through together."""
    with mock.patch.object(walk, "TOGETHER", gl.constexpr(together)):
        return schedule.work(*arguments)
