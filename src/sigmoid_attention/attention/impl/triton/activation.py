r"""The sigmoid of the Triton kernels: accurate in relative terms, as fast as one from tanh.

With b = -log n a weight is near 1/n. The hardware's tanh has an absolute error of 6e-6, so that
0.5 (1 + tanh(u / 2)) is wrong by a fifth of the weight for n = 32768. Two forms keep all digits:

    full   p = 1 / (1 + 2^-x)       x = u log2(e): two special functions
    tail   p = e - e^2 + e^3        e = 2^x: one, and two fused multiply-adds

The tail form is exact to a relative 1e-5 wherever u <= -4, which the certificate (``plan.py``)
proves for whole tiles. Weights are computed times 2^SHIFT: fp16 has few digits below 6e-5, and a
weight of 2^-29 keeps all of them with a shift of 15. The shift costs nothing in the full form and
one multiplication in the tail. Sums of weights are divided by 2^SHIFT at the end.

``SIGMOID_ATTENTION_ACTIVATION=tanh`` in the environment, or ``use("tanh")``, chooses the hardware's
tanh for all tiles, which is one special function and a rounding of 6e-6 in every weight.
"""

import os
from typing import Literal

import triton
import triton.language as tl
from triton import knobs

Activation = Literal["accurate", "tanh"]

# Tests run the kernels in Triton's interpreter, which has no inline assembly and whose products of
# bf16 are wrong. Under it, other instructions compute the same numbers.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

_chosen: Activation | None = None


def use(activation: Activation | None) -> None:
    """Choose the activation of all later calls of this process; None takes the environment's.

    Raises ``ValueError`` for any other name.

    Example:
        >>> use("tanh")
        >>> tanh_is_used()
        True
        >>> use(None)
    """
    if activation not in ("accurate", "tanh", None):
        raise ValueError(f"activation must be accurate, tanh or None, got {activation!r}")
    global _chosen
    _chosen = activation


def tanh_is_used() -> bool:
    """Whether weights come from the hardware's tanh; by default they are accurate."""
    chosen = _chosen or os.environ.get("SIGMOID_ATTENTION_ACTIVATION", "accurate")
    if chosen not in ("accurate", "tanh"):
        raise ValueError(f"SIGMOID_ATTENTION_ACTIVATION must be accurate or tanh, got {chosen!r}")
    return chosen == "tanh"


@triton.jit
def exp2(x):
    if INTERPRETED:
        y = tl.exp2(x)
    else:
        # Without ftz the compiler adds three instructions for denormals.
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def exp2_of_minus(x):
    if INTERPRETED:
        y = tl.exp2(-x)
    else:
        # In one block of assembly, so that the assembler folds the sign into the operand.
        y = tl.inline_asm_elementwise(
            "{ .reg .f32 m; neg.f32 m, $1; ex2.approx.ftz.f32 $0, m; }",
            "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return y


@triton.jit
def reciprocal(x):
    if INTERPRETED:
        y = 1.0 / x
    else:
        y = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def hardware_tanh(x):
    if INTERPRETED:
        y = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2 * LOG2E)))
    else:
        y = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def full(x, SHIFT: tl.constexpr):
    """2^SHIFT sigmoid(u) of x = u log2(e) + SHIFT."""
    return reciprocal(exp2_of_minus(x) + 2.0**-SHIFT)


@triton.jit
def tail(x, SHIFT: tl.constexpr):
    """2^SHIFT sigmoid(u) where u <= -4."""
    e = exp2(x)
    if SHIFT == 0:
        weights = e * (e * e - e) + e
    else:
        unit: tl.constexpr = 2.0**-SHIFT
        weights = e * (e * (e * (unit * unit) - unit)) + e
    return weights


@triton.jit
def by_tanh(x, SHIFT: tl.constexpr):
    """2^SHIFT sigmoid(u) of x = u / 2, by the hardware's tanh."""
    half: tl.constexpr = 0.5 * 2.0**SHIFT
    return hardware_tanh(x) * half + half


@triton.jit
def cap(x, PRECISE: tl.constexpr):
    """tanh(x) with an absolute error of 1e-7; with PRECISE the error is relative."""
    y = 1.0 - 2.0 * reciprocal(1.0 + exp2(x * (2 * LOG2E)))
    if PRECISE:
        # Near 0 the difference above loses digits, and the series keeps them.
        s = x * x
        series = -1382.0 / 155925.0
        series = series * s + 62.0 / 2835.0
        series = series * s - 17.0 / 315.0
        series = series * s + 2.0 / 15.0
        series = series * s - 1.0 / 3.0
        y = tl.where(s < 0.09, x + x * s * series, y)
    return y
