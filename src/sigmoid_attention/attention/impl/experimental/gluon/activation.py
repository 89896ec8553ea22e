# type: ignore - in a kernel, names mean what Gluon's compiler makes of them.
r"""The sigmoid of a tile in registers, two weights at a time.

The hardware computes one special function in the time of four multiplications. So the full form,

    p = 1 / (1 + 2^-x),   x = u log2(e),

takes the reciprocals of two weights at once: with a = 1 + 2^-x and b likewise for its neighbour,
r = 1 / (a b) gives 1/a = r b and 1/b = r a. That is one special function and a half for each
weight instead of two, and three multiplications for a pair. To keep a b finite, -x is limited to
62, so that no weight is below 2^-62. The rounding is that of three operations in fp32.

The tail form is the portable kernel's, one special function for each weight.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from sigmoid_attention.attention.impl.triton import activation


@gluon.jit
def full(x, SHIFT: gl.constexpr):
    """2^SHIFT sigmoid(u) of x = u log2(e) + SHIFT."""
    unit: gl.constexpr = 1.0 / (1 << SHIFT)
    return gl.inline_asm_elementwise(
        """{
        .reg .f32 a, b, r;
        neg.f32 a, $2;
        neg.f32 b, $3;
        min.NaN.f32 a, a, 0f42780000;
        min.NaN.f32 b, b, 0f42780000;
        ex2.approx.ftz.f32 a, a;
        ex2.approx.ftz.f32 b, b;
        add.f32 a, a, $4;
        add.f32 b, b, $5;
        mul.f32 r, a, b;
        rcp.approx.ftz.f32 r, r;
        mul.f32 $0, r, b;
        mul.f32 $1, r, a;
        }""",
        "=f,=f,f,f,f,f",
        [x, gl.full_like(x, unit)],
        dtype=gl.float32,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def weights(x, MASKED: gl.constexpr, TAIL: gl.constexpr, SHIFT: gl.constexpr):
    """2^SHIFT sigmoid(u) of x = u log2(e) + SHIFT; with MASKED -inf gives an exact 0."""
    if MASKED:
        shifted = activation.full(x, SHIFT)
    elif TAIL:
        shifted = activation.tail(x, SHIFT)
    else:
        shifted = full(x, SHIFT)
    return shifted


@gluon.jit
def rounded(x, dtype: gl.constexpr):
    """x in bf16 or fp16, converted in pairs, which saves packing them in every loop."""
    if dtype == gl.bfloat16:
        converted = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        converted = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.float16, is_pure=True, pack=2
        )
    return converted
