"""A store of the recipe study with synthetic values."""

import pytest

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.studies.recipe.unit import COURSE, LOSS, WINDOWED, units

# In the order of their losses, the highest first.
ORDER = ("sigmoid-paper", "softmax-pre", "softmax", "sigmoid-centred", "sigmoid-mass")
SETTING = RecipeSetting(
    candidates=ORDER, seeds=(0, 1, 2), learning_rates=(1e-3, 1e-2), seq_len=8, times=(1, 2)
)


def bits(candidate: str, lr: float, seed: int, times: int) -> float:
    """2 % of 5 for each place in the order; the second rate is better by 0.5."""
    return 5 - 0.1 * ORDER.index(candidate) + (0.5 if lr == 1e-3 else 0) + 0.01 * seed + times - 1


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "study", {}, {}, resume=False)
    for unit in units(SETTING):
        rows = [
            ArmRow(unit.arm, metric, value, "bits/byte", unit.seed, length=times * 8)
            for times in (1, 2)
            for metric, value in (
                (LOSS, bits(*unit, times)),
                (WINDOWED, bits(*unit, times) - 0.2),
            )
        ]
        for step in (1, 2):
            rows.append(ArmRow(unit.arm, COURSE, 6.0 - step, "bits/byte", unit.seed, step))
            rows += [
                ArmRow(
                    unit.arm, "attention_mass", step + layer, "weight", unit.seed, step, layer=layer
                )
                for layer in (0, 1)
            ]
        store.put(unit.name, rows)
    return store
