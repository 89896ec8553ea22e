"""Statistics of mixtures of experts: families, data, estimates, losses, identifiability, rates.

Gates and scores need only torch, because `sigmoid_attention.nn` uses them. Data and the modules
that use data need the extra `lab`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigmoid_attention.mixtures.data import FiniteDesign, RawData, binned
    from sigmoid_attention.mixtures.experts import EXPERTS
    from sigmoid_attention.mixtures.gates import GATES
    from sigmoid_attention.mixtures.model import Mixture
    from sigmoid_attention.mixtures.scores import SCORES

__all__ = ["EXPERTS", "GATES", "SCORES", "FiniteDesign", "Mixture", "RawData", "binned"]

_MODULES = {
    "EXPERTS": "experts",
    "GATES": "gates",
    "SCORES": "scores",
    "FiniteDesign": "data",
    "Mixture": "model",
    "RawData": "data",
    "binned": "data",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return globals()[name]
