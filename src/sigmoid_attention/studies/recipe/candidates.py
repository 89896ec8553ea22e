"""The candidates of the recipe study: changes to one base configuration, by name.

The base is the recipe that the trials of docs/log.md started from: rotary positions on all heads
with ALiBi on every second one, hybrid norm, QK-RMSNorm, and a learned bias per head that starts at
-log L, with L the number of keys that the head effectively sees. A change that means nothing to
softmax (a bias, centred keys) is not among the candidates of softmax; every other change is.
"""

from dataclasses import dataclass
from typing import Any

from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.nn.models.config import ModelConfig
from sigmoid_attention.nn.models.recipes import PAPER

BASE: dict[str, Any] = {
    "position": "rope+alibi",
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_effective_length",
    "learn_bias": True,
}
ROTARY: dict[str, Any] = {"position": "rope", "bias": "neg_log_length"}


@dataclass(frozen=True)
class Candidate:
    """A named model of the study: its activation, and its changes to the base configuration."""

    name: str
    activation: str
    changes: dict[str, Any]

    def config(self, **sizes: Any) -> ModelConfig:
        """The model's configuration with these sizes.

        Example:
            >>> sizes = dict(vocab_size=257, dim=32, layers=1, num_heads=4, max_seq_len=64)
            >>> CANDIDATES["softmax"].config(**sizes).activation
            'softmax'
        """
        settings = BASE | self.changes | sizes
        if self.activation == SOFTMAX:
            # They change nothing there; left out, the parameters are those of a softmax.
            settings |= {"bias": "neg_log_length", "learn_bias": False}
        return ModelConfig(**settings, activation=self.activation)


_CENTRED = {"centred_keys": True}
_STATE = {"state_bias": True}
_MASS = {"mass_exponent": "learned"}
_PRE = {"norm_placement": "pre"}
_GATE = {"gate": "element"}
_RESIDUAL = {"value_residual": True}

_SOFTMAX = {
    "softmax": {},
    "softmax-pre": _PRE,
    "softmax-rotary": ROTARY,
    "softmax-rotary-pre": ROTARY | _PRE,
    "softmax-gate": _GATE,
    "softmax-value-residual": _RESIDUAL,
    "softmax-gate-value-residual": _GATE | _RESIDUAL,
}
_SIGMOID = {
    "sigmoid": {},
    "sigmoid-paper": PAPER | {"learn_bias": False},
    "sigmoid-earlier-recipe": ROTARY | {"bias_offset": -2.5, "learn_bias": False},
    "sigmoid-state": _STATE,
    "sigmoid-mass": _MASS,
    "sigmoid-mass-state": _MASS | _STATE,
    "sigmoid-centred": _CENTRED,
    "sigmoid-centred-fixed-bias": _CENTRED | {"learn_bias": False},
    "sigmoid-centred-state": _CENTRED | _STATE,
    "sigmoid-centred-pre": _CENTRED | _PRE,
    "sigmoid-centred-rotary": _CENTRED | ROTARY,
    "sigmoid-centred-mass": _CENTRED | _MASS,
    "sigmoid-centred-gate": _CENTRED | _GATE,
    "sigmoid-centred-value-residual": _CENTRED | _RESIDUAL,
    "sigmoid-centred-gate-value-residual": _CENTRED | _GATE | _RESIDUAL,
}

CANDIDATES: dict[str, Candidate] = {
    name: Candidate(name, activation, changes)
    for activation, group in ((SOFTMAX, _SOFTMAX), (SIGMOID, _SIGMOID))
    for name, changes in group.items()
}
