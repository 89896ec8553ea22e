"""The values of a setting's runs, by candidate and learning rate, as the verdicts read them.

A rate at which a seed diverged is not judged: the other seeds alone would be a choice of the lucky.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping

from sigmoid_attention.lab.rows import SOFTMAX
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.studies.recipe.unit import DIVERGED, units

# The values of each seed, by metric and length.
Values = Mapping[tuple[str, int], Mapping[int, float]]


def values_by_rate(
    store: Store, setting: RecipeSetting, metrics: Collection[str]
) -> dict[str, dict[float, Values]]:
    """The metrics' values of every candidate of the setting at every rate that can be judged.

    The store may hold more candidates, seeds and rates than the setting. A candidate that diverged
    at every rate is left out.
    """
    values: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    diverged = set()
    arms = {unit.arm: unit for unit in units(setting)}
    for row in store.rows().to_pylist():
        unit = arms.get(row["arm"])
        if unit is None or row["seed"] not in setting.seeds:
            continue
        if row["metric"] == DIVERGED:
            diverged.add((unit.candidate, unit.lr))
        elif row["metric"] in metrics:
            by_seed = values[unit.candidate][unit.lr][row["metric"], row["length"]]
            by_seed[row["seed"]] = row["value"]
    judged: dict[str, dict[float, Values]] = defaultdict(dict)
    for candidate, rates in values.items():
        for lr, of_rate in rates.items():
            if (candidate, lr) not in diverged:
                judged[candidate][lr] = of_rate
    return dict(judged)


def best_softmax(order: Collection[str]) -> str:
    """The first softmax of the candidates in this order.

    Raises ``ValueError`` if there is none.
    """
    softmaxes = [name for name in order if CANDIDATES[name].activation == SOFTMAX]
    if not softmaxes:
        raise ValueError("candidates must have a softmax to compare with, got none")
    return softmaxes[0]


def seed_names(setting: RecipeSetting) -> str:
    """The setting's seeds in words.

    Example:
        >>> seed_names(RecipeSetting(seeds=(0, 1))), seed_names(RecipeSetting(seeds=(7,)))
        ('Seeds 0, 1', 'Seed 7')
    """
    return f"Seed{'s' * (len(setting.seeds) > 1)} {', '.join(map(str, setting.seeds))}"
