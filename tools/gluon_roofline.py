"""Upper bounds for the speed of the Gluon kernels on a Hopper GPU, from their machine code.

``python -m tools.gluon_roofline`` prints it.

Predicted from counts of instructions in the inner loops, not measured. For each score a
multiprocessor spends, in cycles,

    tensor cores    2 D operations for each of 2 products, or 5 backward, at 4096 a cycle
    issue           instructions of a thread, at 128 a cycle
    special         special functions, at 16 a cycle

If all three overlap completely, the longest is the time; if the tensor cores overlap with nothing,
their time and the longer of the others add up. The real speed lies between these bounds, or lower
if memory, barriers or a lower clock under load slow the kernel down.
"""

import argparse
from dataclasses import replace

from sigmoid_attention.attention.impl.experimental.gluon import configs
from sigmoid_attention.attention.impl.experimental.gluon.configs import ROWS, Backward, Forward
from tests.support.attention.cross_compile import Code
from tests.support.gluon.kernels import PLAIN, compiled

PROCESSORS = 132  # of an H100 or H200 SXM


def cycles(loop: Code, scores: int, head_dim: int, products: int) -> tuple[float, float, float]:
    """Of tensor cores, issue and special functions, for each score of a warp group's tile."""
    issue = loop.per_score(scores, 4) / 128
    special = loop.per_score(scores, 4, "MUFU") / 16
    return products * 2 * head_dim / 4096, issue, special


def bounds(config: Forward | Backward, loop: Code, clock: float) -> tuple[float, float]:
    """TFLOP/s without overlap and with a complete one, at a clock in GHz."""
    forward = isinstance(config, Forward)
    scores = ROWS * (config.block_k if forward else config.block_q)
    products = 2 if forward else 5
    tensor, issue, special = cycles(loop, scores, config.head_dim, products)
    work = products * 2 * config.head_dim * PROCESSORS * clock * 1e9 / 1e12
    return work / (tensor + max(issue, special)), work / max(tensor, issue, special)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", type=float, default=1.755, help="GHz, by default %(default)s")
    clock = parser.parse_args().clock
    print(f"Predicted from instruction counts at {clock} GHz, not measured.")
    print(
        f"{'kernel':22}{'instructions':>13}{'special':>9}"
        f"{'TFLOP/s: none':>15}{'all overlapped':>16}"
    )
    planned = replace(PLAIN, tails=True)
    for head_dim in configs.HEAD_DIMS:
        for name, config in (
            ("forward", configs.forward(head_dim, PLAIN)),
            ("forward, planned", configs.forward(head_dim, planned)),
            ("backward", configs.backward(head_dim, PLAIN)),
        ):
            scores = ROWS * (config.block_k if isinstance(config, Forward) else config.block_q)
            loops = compiled(config).inner("HGMMA")
            count = 2 if config.tails else 1
            for kind, loop in zip(("full", "tail")[:count], loops[:count], strict=True):
                least, most = bounds(config, loop, clock)
                print(
                    f"{f'{name} D{head_dim} {kind}':28}{loop.per_score(scores, 4):>7.2f}"
                    f"{loop.per_score(scores, 4, 'MUFU'):>9.2f}{least:>15.0f}{most:>16.0f}"
                )


if __name__ == "__main__":
    main()
