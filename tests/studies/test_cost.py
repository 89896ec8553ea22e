"""Taking turns."""

import torch

from sigmoid_attention.studies.cost import SHORTEST_SECONDS, by_turns

CPU = torch.device("cpu")


def test_arms_take_turns_in_alternating_order_and_short_work_is_repeated():
    calls = []
    work = {
        "softmax": lambda: calls.append("softmax") or torch.ones(3000).sort(),
        "sigmoid": lambda: calls.append("sigmoid") or torch.ones(3000).sort(),
    }
    rows = list(by_turns(work, rounds=3, device=CPU))
    assert [(row.arm, row.step) for row in rows] == [
        ("sigmoid", 0), ("softmax", 0), ("softmax", 1), ("sigmoid", 1), ("sigmoid", 2),
        ("softmax", 2),
    ]  # fmt: skip
    assert all(0 < row.value < SHORTEST_SECONDS for row in rows)
    assert len(calls) > 3 * len(rows)
