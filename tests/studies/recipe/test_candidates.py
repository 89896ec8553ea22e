"""The candidates' names say what their models are, and settings refuse what they cannot train."""

import pytest

from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.setting import (
    CHOOSING_SEEDS,
    REPORTING_SEEDS,
    SETTINGS,
    RecipeSetting,
)

SIZES = {"vocab_size": 257, "dim": 16, "layers": 2, "num_heads": 4, "max_seq_len": 32}


@pytest.mark.parametrize("name", CANDIDATES)
def test_names_say_what_the_models_are(name):
    config = CANDIDATES[name].config(**SIZES)
    words = name.split("-")
    assert config.activation == words[0]
    assert config.centred_keys == ("centred" in words)
    assert config.state_bias == ("state" in words)
    assert config.value_residual == ("residual" in words)
    assert config.gate == ("element" if "gate" in words else None)
    assert config.mass_exponent == ("learned" if "mass" in words else None)
    assert (config.norm_placement == "pre") == ("pre" in words)
    rotary = "rotary" in words or name == "sigmoid-earlier-recipe"
    assert config.position == (
        "alibi" if name == "sigmoid-paper" else "rope" if rotary else "rope+alibi"
    )


def test_a_softmax_has_no_parameters_that_change_nothing():
    softmax = CANDIDATES["softmax"].config(**SIZES)
    assert not softmax.learn_bias and not softmax.centred_keys


def test_no_seed_of_the_report_was_chosen_on():
    assert not set(CHOOSING_SEEDS) & set(REPORTING_SEEDS)
    for name, setting in SETTINGS.items():
        allowed = REPORTING_SEEDS if name.startswith(("report", "trend")) else CHOOSING_SEEDS
        assert set(setting.seeds) <= set(allowed)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": ()}, "seeds must have at least one number, got none"),
        ({"learning_rates": ()}, "learning_rates must be positive numbers"),
        ({"learning_rates": (0.1, float("inf"))}, "learning_rates must be positive numbers"),
        ({"candidates": ()}, "candidates must have at least one name, got none"),
        ({"candidates": ("softmax", "best")}, "candidates must be among .*, got 'best'"),
    ],
)
def test_settings_that_train_nothing_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        RecipeSetting(**changes)
