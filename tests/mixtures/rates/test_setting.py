"""Settings of rate studies: a design must have a node for every parameter."""

import pytest

from sigmoid_attention.mixtures.rates.setting import RateSetting
from sigmoid_attention.studies.mixtures.classification import ClassificationSetting
from sigmoid_attention.studies.mixtures.same_truth import SameTruthSetting
from sigmoid_attention.studies.mixtures.temperature import TemperatureSetting


@pytest.mark.parametrize(
    ("make", "sentence"),
    (
        (
            lambda: RateSetting("sigmoid", "relu+bias", d=32, k=7),
            "nodes must be at least the 528 parameters, got 256",
        ),
        (
            lambda: SameTruthSetting("sigmoid", extra=1, nodes=19),
            "nodes must be at least the 20 parameters, got 19",
        ),
        (
            lambda: TemperatureSetting("sigmoid", "linear", nodes=10),
            "nodes must be at least the 11 parameters, got 10",
        ),
        (
            lambda: ClassificationSetting("sigmoid", nodes=6),
            "nodes times classes - 1 must be at least the 14 parameters, got 12",
        ),
    ),
)
def test_fewer_nodes_than_parameters_are_refused(make, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make()


def test_as_many_nodes_as_parameters_are_enough():
    assert RateSetting("sigmoid", "gelu", k=2, extra=0, nodes=10).family.size == 10
