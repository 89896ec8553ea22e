"""A store of the recipe study with synthetic values."""

import pytest

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe import (
    CANDIDATES,
    METRIC,
    RecipeSetting,
    unit_name,
    units,
)

SETTING = RecipeSetting(seeds=3, learning_rates=(1e-3, 1e-2), seq_len=8)


@pytest.fixture
def store(tmp_path):
    """Losses that fall with the candidate's place in the list, best at the second rate."""
    store = Store(tmp_path / "study", {}, {}, resume=False)
    for candidate, lr, seed in units(SETTING):
        place = list(CANDIDATES).index(candidate)
        value = 3 - 0.1 * place + (0.5 if lr == 1e-3 else 0.0) + 0.01 * seed
        rows = [
            ArmRow(
                f"{candidate} @ {lr:g}", METRIC, value + times, "bits/byte", seed, length=times * 8
            )
            for times in (1, 2, 4)
        ]
        store.put(unit_name(candidate, lr, seed), rows)
    return store
