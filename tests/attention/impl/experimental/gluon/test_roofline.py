"""The arithmetic of the roofline model, on a loop with known instructions."""

import pytest

from sigmoid_attention.attention.impl.experimental.gluon import configs
from tests.support.attention.cross_compile import Code, Instruction
from tests.support.gluon.kernels import PLAIN
from tools import gluon_roofline as roofline


def test_bounds_are_those_of_the_slowest_unit_and_of_a_sum():
    config = configs.forward(128, PLAIN)
    # 64 scores a thread: 8 instructions and 2 special functions for each.
    texts = ["MUFU.EX2 R0, R0"] * 128 + ["FFMA R0, R0, R0, R0"] * 384
    loop = Code(tuple(Instruction(16 * place, text) for place, text in enumerate(texts)))
    assert roofline.cycles(loop, 64 * 128, 128, 2) == (0.125, 0.0625, 0.125)
    peak = 132 * 1.0e9 * 4096 / 1e12
    assert roofline.bounds(config, loop, 1.0) == pytest.approx((peak / 2, peak))
    backward = configs.backward(128, PLAIN)
    # Half as many scores for a thread, and five products instead of two.
    assert roofline.bounds(backward, loop, 1.0) == pytest.approx((peak * 5 / 9, peak))
