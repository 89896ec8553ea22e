"""Rows of the routing study with synthetic values."""

import dataclasses

from sigmoid_attention.lab.rows import SIGMOID, ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.routing.run import arm_name, unit_name, units
from sigmoid_attention.studies.routing.setting import (
    RoutingSetting,
)

TINY = RoutingSetting(
    seeds=1, steps=4, warmup_steps=1, batch_size=2, seq_len=16, dim=8, num_heads=2, experts=4,
    expert_hidden=4, record_every=2, probe_tokens=64, heldout_bytes=256,
)  # fmt: skip
# Sigmoid minus softmax of three seeds, about a loss of 2: the margin of "equal" is 0.02.
LOSSES = {
    "better": (-0.05, -0.06, -0.07),
    "worse": (0.05, 0.06, 0.07),
    "equal": (-0.004, 0.0, 0.003),
    "undecided": (-0.2, 0.2, 0.1),
}


def run_rows(tmp_path, apart=LOSSES["better"], seeds=3, **others):
    """A store in which sigmoid differs from softmax as is said, in every pair."""
    store = Store(tmp_path / "made", dataclasses.asdict(TINY), {
        "machine": {"processor": "a processor", "threads": 1},
        "versions": {"torch": "2.13.0"},
    }, resume=False)  # fmt: skip
    base = {"validation_bits_per_byte": 2.0, "load_entropy": 0.8, "churn": 0.3} | others
    for pair, arm, seed in units(dataclasses.replace(TINY, seeds=seeds)):
        shift = apart[(seed - 100) % 3] if arm == SIGMOID else 0.0
        name = arm_name(pair, arm)
        rows = [
            ArmRow(name, metric, value + shift + 0.1 * layer, "", seed, layer=layer)
            for metric, value in base.items()
            for layer in (0, 1)
        ]
        rows += [ArmRow(name, of, 7.0, "", seed) for of in ("parameters", "active_parameters")]
        store.put(unit_name(pair, arm, seed), rows)
    return store.rows()
