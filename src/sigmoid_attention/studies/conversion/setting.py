"""The setting of a conversion: everything that determines its result except model and text."""

import math
from dataclasses import dataclass, replace

from sigmoid_attention.lab.option_types import Flag, Int

# Tokens per step by default.
TOKENS = 1024


@dataclass(frozen=True)
class ConversionSetting:
    """A conversion in two stages: layer by layer, then all layers at once.

    Stage one trains the layers in order. A layer's biases are calibrated on its rows after the
    converted layers before it. Then its weights and biases are trained for ``layer_steps`` steps to
    reproduce the parent's hidden states. Stage two trains all layers for ``steps`` steps on three
    losses, each with a weight: the parent's hidden states, the parent's predictions, and the text's
    next tokens. Without the first two it is a fine-tuning that does not run the parent. Without
    stage one (``layer_steps`` 0), biases move from the softmax's to the final ones during the first
    half of stage two.

    A language model trains on text of which a share, ``repeats``, repeats an earlier part of the
    sequence; other models have no repeats.

    Learning rates are Adam's at the start of a layer and after the warm-up of stage two. They decay
    linearly to zero within each layer, and with a cosine in stage two. ``bias_lr`` is for the
    biases in both stages. A ``seq_len`` of None is 1024 or the model's number of positions; a
    ``batch_size`` of None gives 1024 tokens per step.
    """

    steps: int = 240
    """Steps on all layers at once."""
    layer_steps: int = 30
    """Steps on each layer before that; 0 trains all layers at once from the start."""
    form: str = "linear"
    """The final bias of a head: linear (in the layer's input at the token) or constant."""
    gain: float = 1.5
    """Weights start as p / (1 + p / gain) where the softmax has p."""
    annealed: str = "bias"
    """What moves from the softmax to the sigmoid: the bias, or also a power of the mass by which
    rows are divided (mass), with the exact softmax at the start."""
    seq_len: Int = None
    """Tokens per sequence, for an encoder at most; by default 1024, or the model's positions."""
    batch_size: Int = None
    """Sequences per step; by default as many as make 1024 tokens."""
    layer_batches: int = 16
    """Batches to which each layer is fitted."""
    layer_lr: float = 2e-4
    """Learning rate of a layer's weights in the first stage."""
    bias_lr: float = 1e-2
    """Learning rate of the biases."""
    lr: float = 2e-4
    """Peak learning rate of the weights in the second stage."""
    temperature: float = 1.0
    """Temperature of the parent's predictions."""
    hidden_weight: float = 1.0
    """Weight of the hidden states' error in the second stage."""
    logit_weight: float = 1.0
    """Weight of the divergence from the parent's predictions in the second stage."""
    text_weight: float = 0.0
    """Weight of the loss on the text's next tokens. With 0 for the other two weights there is no
    distillation, and with --layer-steps 0 as well the conversion is a plain fine-tuning."""
    repeats: float = 0.5
    """Share of a language model's training text that repeats an earlier part of its sequence."""
    bf16: Flag = False
    """Compute forward passes of the training in bfloat16; parameters stay in float32."""
    seed: int = 0
    """Seed of the order of the data."""

    def check(self) -> None:
        """Raise ``ValueError`` if a value is out of range, or if nothing would be trained."""
        # Imported here, because it needs transformers and the command line's help does not.
        from sigmoid_attention.integrations.conversion import ANNEALED, FORMS

        conditions = {
            "steps": (self.steps >= 0, "at least 0"),
            "layer_steps": (self.layer_steps >= 0, "at least 0"),
            "form": (self.form in FORMS, f"one of {', '.join(FORMS)}"),
            "annealed": (self.annealed in ANNEALED, f"one of {', '.join(ANNEALED)}"),
            "gain": (0 < self.gain < math.inf, "positive and finite"),
            "seq_len": (self.seq_len is None or self.seq_len >= 16, "at least 16"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1"),
            "layer_batches": (self.layer_batches >= 1, "at least 1"),
            "layer_lr": (0 <= self.layer_lr < math.inf, "at least 0 and finite"),
            "bias_lr": (0 <= self.bias_lr < math.inf, "at least 0 and finite"),
            "lr": (0 <= self.lr < math.inf, "at least 0 and finite"),
            "temperature": (0 < self.temperature < math.inf, "positive and finite"),
            "hidden_weight": (0 <= self.hidden_weight < math.inf, "at least 0 and finite"),
            "logit_weight": (0 <= self.logit_weight < math.inf, "at least 0 and finite"),
            "text_weight": (0 <= self.text_weight < math.inf, "at least 0 and finite"),
            "repeats": (0 <= self.repeats < 1, "at least 0 and below 1"),
        }
        for name, (holds, wanted) in conditions.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        if self.steps + self.layer_steps == 0:
            raise ValueError("steps and layer_steps must not both be 0: nothing would be trained")
        if self.steps and not (self.hidden_weight or self.logit_weight or self.text_weight):
            raise ValueError(
                "hidden_weight, logit_weight and text_weight must not all be 0: "
                "nothing would be learned in the steps on all layers"
            )

    def fitted(self, positions: int | None, *, predicts: bool) -> "ConversionSetting":
        """This setting with the defaults of a model filled in.

        Args:
            positions: the largest sequence length of the model; None if it has no limit.
            predicts: whether the model gives logits for the next token, or only hidden states.

        Raises:
            ValueError: a value is out of range, sequences would be longer than ``positions``, or
                the setting needs predictions that the model does not give.

        Example:
            >>> fitted = ConversionSetting(steps=1, layer_steps=0).fitted(512, predicts=True)
            >>> fitted.seq_len, fitted.batch_size
            (512, 2)
        """
        self.check()
        if not predicts and self.text_weight:
            raise ValueError("text_weight must be 0: this model predicts no tokens")
        if not predicts and self.steps and not self.hidden_weight:
            raise ValueError(
                "hidden_weight must be positive: this model predicts no tokens, so that nothing "
                "else can be learned"
            )
        most = TOKENS if positions is None else min(TOKENS, positions)
        seq_len = most if self.seq_len is None else self.seq_len
        if positions is not None and seq_len > positions:
            raise ValueError(f"seq_len must be at most the model's {positions}, got {seq_len}")
        batch_size = max(1, TOKENS // seq_len) if self.batch_size is None else self.batch_size
        repeats = self.repeats if predicts else 0.0
        return replace(self, seq_len=seq_len, batch_size=batch_size, repeats=repeats)
