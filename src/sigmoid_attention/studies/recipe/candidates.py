"""The candidates of the recipe study: changes to one base configuration, by name.

The base is the recipe that the trials of docs/log.md started from: rotary positions on all heads
with ALiBi on every second one, hybrid norm, QK-RMSNorm, and a learned bias per head that starts at
-log L, with L the number of keys that the head effectively sees. A change that means nothing to
softmax (a bias, centred keys) is not among the candidates of softmax; every other change is.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sigmoid_attention.lab.rows import SIGMOID, SOFTMAX
from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.nn.models.recipes import PAPER
from sigmoid_attention.studies.recipe import parts
from sigmoid_attention.studies.recipe.measure import attention_layers

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
    """A named model of the study: its activation, and its changes to the base configuration.

    ``parts`` change each attention layer of the model; ``training`` are settings of `TrainConfig`.
    """

    name: str
    activation: str
    changes: dict[str, Any]
    parts: tuple[Callable[[Attention], None], ...] = ()
    training: dict[str, Any] = field(default_factory=dict)

    def config(self, **sizes: Any) -> ModelConfig:
        """The model's configuration with these sizes.

        Example:
            >>> sizes = dict(vocab_size=257, dim=32, layers=1, num_heads=4, max_seq_len=64)
            >>> CANDIDATES["softmax"].config(**sizes).activation
            'softmax'
        """
        settings = BASE | sizes | self.changes
        if self.activation == SOFTMAX:
            # They change nothing there; left out, the parameters are those of a softmax.
            settings |= {"bias": "neg_log_length", "learn_bias": False}
        return ModelConfig(**settings, activation=self.activation)

    def change(self, model: DecoderLM) -> None:
        """Give each attention layer of the model the candidate's parts."""
        for layer in attention_layers(model):
            for part in self.parts:
                part(layer)


_CENTRED = {"centred_keys": True}
_STATE = {"state_bias": True}
_MASS = {"mass_exponent": "learned"}
_PRE = {"norm_placement": "pre"}
_GATE = {"gate": "element"}
_RESIDUAL = {"value_residual": True}
# Ten times the usual decay; AdamW's 0.1 at a rate of 1e-2, where it is multiplied by the rate.
_DECAY = {"weight_decay": 1e-3}

# Changes that mean something to both kinds: configuration, parts of a layer, training.
_BOTH: dict[str, tuple[dict, tuple, dict]] = {
    "": ({}, (), {}),
    "-pre": (_PRE, (), {}),
    "-rotary": (ROTARY, (), {}),
    "-gate": (_GATE, (), {}),
    "-value-residual": (_RESIDUAL, (), {}),
    "-gate-value-residual": (_GATE | _RESIDUAL, (), {}),
    "-2-heads": ({"num_heads": 2}, (), {}),
    "-8-heads": ({"num_heads": 8}, (), {}),
    "-softcap": ({"softcap": 10.0}, (), {}),
    "-all-slopes": ({}, (parts.slopes_on_all_heads,), {}),
    "-gain": ({}, (parts.head_gain,), {}),
    # What the reports save by bf16 (setting.py), and what it costs.
    "-bf16": ({}, (), {"bf16": True}),
    "-no-decay": ({}, (), {"weight_decay": 0.0}),
    "-more-decay": ({}, (), _DECAY),
    "-more-decay-value-residual": (_RESIDUAL, (), _DECAY),
}
_SOFTMAX = _BOTH | {"-rotary-pre": (ROTARY | _PRE, (), {})}
_CENTRED_SIGMOID = _BOTH | {
    "-all-slopes-value-residual": (_RESIDUAL, (parts.slopes_on_all_heads,), {}),
    "-fixed-bias": ({"learn_bias": False}, (), {}),
    "-bias-1": ({"bias_offset": -1.0}, (), {}),
    "-bias-2.5": ({"bias_offset": -2.5}, (), {}),
    "-state": (_STATE, (), {}),
    "-mass": (_MASS, (), {}),
    "-position": ({}, (parts.log_position,), {}),
    "-moment": ({}, (parts.second_moment,), {}),
}
_SIGMOID: dict[str, tuple[dict, tuple, dict]] = {
    "": ({}, (), {}),
    "-paper": (PAPER | {"learn_bias": False}, (), {}),
    "-earlier-recipe": (ROTARY | {"bias_offset": -2.5, "learn_bias": False}, (), {}),
    "-state": (_STATE, (), {}),
    "-mass": (_MASS, (), {}),
    "-mass-state": (_MASS | _STATE, (), {}),
    "-position": ({}, (parts.log_position,), {}),
    "-window-mean": ({}, (parts.window_centring,), {}),
    "-vector-mean": ({}, (parts.vector_centring,), {}),
    "-batch-mean": ({}, (parts.batch_centring,), {}),
}
_GROUPS = {
    "softmax": (SOFTMAX, {}, _SOFTMAX),
    "sigmoid": (SIGMOID, {}, _SIGMOID),
    "sigmoid-centred": (SIGMOID, _CENTRED, _CENTRED_SIGMOID),
}

CANDIDATES: dict[str, Candidate] = {
    stem + ending: Candidate(stem + ending, activation, common | changes, own, training)
    for stem, (activation, common, group) in _GROUPS.items()
    for ending, (changes, own, training) in group.items()
}
