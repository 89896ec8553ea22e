"""The configuration of a decoder language model, checked when it is made."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from sigmoid_attention.attention import (
    BiasPolicy,
    Constant,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    arguments,
)
from sigmoid_attention.nn.attention import ACTIVATIONS, REACHES
from sigmoid_attention.nn.block import NORM_PLACEMENTS
from sigmoid_attention.nn.feed_forward import FEED_FORWARDS, swiglu_hidden
from sigmoid_attention.nn.gate import GATES
from sigmoid_attention.nn.layer_options import checked_mass_exponent
from sigmoid_attention.nn.models.recipes import recipe_settings
from sigmoid_attention.nn.moe import MoEConfig
from sigmoid_attention.nn.norm import NORMS
from sigmoid_attention.nn.position import RoPEWithALiBi, slope_numbers
from sigmoid_attention.nn.sizes import (
    finite_number,
    head_sizes,
    one_of,
    positive_number,
    positive_whole,
    probability,
    switch,
)

POSITIONS = ("alibi", "rope", "rope+alibi", "sincos", "learned", "cape", "none")
# Later fields, with the value that means a model without them.
OPTIONS = {
    "moe": None,
    "centred_keys": False,
    "state_bias": False,
    "gate": None,
    "value_residual": False,
    "mass_exponent": None,
    "reach": None,
}
BIASES = ("neg_log_length", "neg_log_visible", "neg_log_effective_length")


@dataclass(frozen=True)
class ModelConfig:
    """All settings of a `DecoderLM`; equal configurations give models of equal structure.

    Sizes are counts: ``dim`` channels, ``max_seq_len`` the training length n in tokens (longer
    inputs are allowed unless positions are learned), ``window_size`` the tokens that a token
    sees, itself among them. The defaults of None: ``num_kv_heads`` is ``num_heads``,
    ``head_dim`` is dim / num_heads, ``ffn_dim`` is 8/3 dim rounded up to 256 (SwiGLU) or 4 dim
    (GELU). ``bias`` is a name or a number; ``bias_offset`` is added to a named bias, and
    ``learn_bias`` trains it per head from that value. ``moe`` replaces feed-forward layers by
    mixtures of experts. ``centred_keys``, ``state_bias``, ``gate``, ``value_residual`` and
    ``mass_exponent`` are the options of `Attention`; a softmax ignores the first two and the last.
    ``reach`` "trained" lets a token see ``max_seq_len`` tokens at most, as in training, also in
    longer inputs; None sets no such limit. ``as_softmax`` returns the same configuration with
    softmax attention.
    Raises ``TypeError`` for a wrong type and ``ValueError`` for a wrong value.

    Example:
        >>> sizes = dict(vocab_size=257, dim=64, layers=2, num_heads=4, max_seq_len=128)
        >>> config = ModelConfig.recipe("recommended", **sizes)
        >>> config.position, config.bias_policy(), config.centred_keys
        ('rope+alibi', Learned(num_heads=4), True)
        >>> ModelConfig.from_dict(config.to_dict()) == config
        True
    """

    vocab_size: int
    dim: int
    layers: int
    num_heads: int
    max_seq_len: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: int | None = None
    feed_forward: str = "swiglu"
    activation: str = "sigmoid"
    bias: str | float = "neg_log_length"
    bias_offset: float = 0.0
    learn_bias: bool = False
    position: str = "alibi"
    rope_base: float = 10_000.0
    norm_placement: str = "pre"
    norm_eps: float = 1e-5
    qk_norm: str | None = None
    layer_scale: float | None = None
    window_size: int | None = None
    softcap: float | None = None
    dropout_p: float = 0.0
    tie_embeddings: bool = True
    moe: MoEConfig | None = None
    centred_keys: bool = False
    state_bias: bool = False
    gate: str | None = None
    value_residual: bool = False
    mass_exponent: float | str | None = None
    reach: str | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_sizes()
        self._check_bias()

    @classmethod
    def recipe(cls, name: str, **sizes: Any) -> Self:
        """A configuration with the position, norms and bias of a recipe, changed by ``sizes``.

        ``name`` is "paper" or "recommended"; see `sigmoid_attention.nn.models.recipes`. The
        recommended settings depend on the position in ``sizes``.
        """
        return cls(**{**recipe_settings(name, sizes.get("position")), **sizes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration that ``to_dict`` wrote; ``ValueError`` for an unknown field."""
        _check_fields(cls, values, "model configuration")
        moe = values.get("moe")
        if moe is None:
            return cls(**values)
        _check_fields(MoEConfig, moe, "model configuration, moe")
        return cls(**{**values, "moe": MoEConfig(**moe)})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and None, ready for JSON; without options that are not used."""
        values = dataclasses.asdict(self)
        # A model without them writes what older versions wrote.
        return {k: v for k, v in values.items() if k not in OPTIONS or v != OPTIONS[k]}

    def as_softmax(self) -> Self:
        """The same configuration with softmax attention in place of sigmoid attention."""
        return dataclasses.replace(self, activation="softmax")

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward layers."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        return swiglu_hidden(self.dim) if self.feed_forward == "swiglu" else 4 * self.dim

    def bias_policy(self) -> BiasPolicy:
        """The bias of one attention layer; each call makes a new parameter if it is learned."""
        policy = self._fixed_bias()
        return Learned(policy, self.num_heads) if self.learn_bias else policy

    def _fixed_bias(self) -> BiasPolicy:
        if not isinstance(self.bias, str):
            return Constant(self.bias)
        if self.bias == "neg_log_visible":
            return NegLogVisible()
        # A query sees no more keys in training than its window holds.
        n = (
            self.max_seq_len
            if self.window_size is None
            else min(self.window_size, self.max_seq_len)
        )
        if self.bias == "neg_log_length":
            return NegLogLength(n, self.bias_offset)
        slopes = {"alibi": slope_numbers, "rope+alibi": RoPEWithALiBi().slope_numbers}
        if self.position not in slopes:
            # A head without a slope sees all n keys.
            return NegLogLength(n, self.bias_offset)
        return NegLogEffectiveLength(slopes[self.position](self.num_heads), n, self.bias_offset)

    def _check_kinds(self) -> None:
        """Check each field separately, and convert numbers to Python numbers for JSON."""
        for name in ("vocab_size", "dim", "layers", "num_heads", "max_seq_len"):
            self._keep(name, positive_whole)
        for name in ("num_kv_heads", "head_dim", "ffn_dim", "window_size"):
            self._keep(name, positive_whole, optional=True)
        for name in ("rope_base", "norm_eps"):
            self._keep(name, positive_number)
        self._keep("softcap", positive_number, optional=True)
        self._keep("layer_scale", finite_number, optional=True)
        self._keep("dropout_p", probability)
        self._keep("bias_offset", finite_number)
        switches = ("learn_bias", "tie_embeddings", "centred_keys", "state_bias", "value_residual")
        for name in switches:
            self._keep(name, switch)
        object.__setattr__(self, "mass_exponent", checked_mass_exponent(self.mass_exponent))
        choices = {
            "activation": ACTIVATIONS,
            "position": POSITIONS,
            "norm_placement": NORM_PLACEMENTS,
            "qk_norm": (None, *NORMS),
            "feed_forward": FEED_FORWARDS,
            "gate": GATES,
            "reach": REACHES,
        }
        for name, allowed in choices.items():
            one_of(name, getattr(self, name), allowed)
        if self.moe is not None and not isinstance(self.moe, MoEConfig):
            raise TypeError(f"moe must be a MoEConfig or None, got {arguments.shown(self.moe)}")

    def _keep(self, name: str, check: Callable[[str, Any], Any], optional: bool = False) -> None:
        value = getattr(self, name)
        if value is not None or not optional:
            object.__setattr__(self, name, check(name, value))

    def _check_sizes(self) -> None:
        _, head_dim = head_sizes(self.dim, self.num_heads, self.num_kv_heads, self.head_dim)
        if self.position in ("rope", "rope+alibi") and head_dim % 2:
            raise ValueError(f"position {self.position!r} needs an even head_dim, got {head_dim}")
        if self.position in ("sincos", "cape") and self.dim % 2:
            raise ValueError(f"position {self.position!r} needs an even dim, got {self.dim}")

    def _check_bias(self) -> None:
        if not isinstance(self.bias, str):
            bias = arguments.number("bias", self.bias, f"a finite number or one of {BIASES}")
            object.__setattr__(self, "bias", bias)
        elif self.bias not in BIASES:
            raise ValueError(f"bias must be a number or one of {BIASES}, got {self.bias!r}")
        if self.bias_offset and (self.bias == "neg_log_visible" or not isinstance(self.bias, str)):
            raise ValueError(
                f"bias_offset moves 'neg_log_length' and 'neg_log_effective_length' only, "
                f"got {self.bias_offset} with bias {self.bias!r}"
            )
        for name in ("learn_bias", "state_bias"):
            if getattr(self, name) and self.bias == "neg_log_visible":
                raise ValueError(f"{name} starts from one number per head, got 'neg_log_visible'")


def _check_fields(kind: type, values: dict[str, Any], where: str) -> None:
    if not isinstance(values, dict):
        raise TypeError(f"{where} must be a dict of its fields, got {arguments.shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields), key=str)
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}")
    required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"{where}: field {missing[0]!r} is missing")
