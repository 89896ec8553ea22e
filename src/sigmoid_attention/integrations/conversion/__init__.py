"""Convert a pretrained softmax model: initial bias, calibration, distillation losses."""

# First, because it says what to install if transformers is missing.
import sigmoid_attention.integrations.transformers  # noqa: F401
from sigmoid_attention.integrations.conversion.calibration import Calibration
from sigmoid_attention.integrations.conversion.layers import LayerStream, attention_layers
from sigmoid_attention.integrations.conversion.losses import (
    damped_error,
    logit_divergence,
    next_token_loss,
    relative_error,
)
from sigmoid_attention.integrations.conversion.schedule import (
    Annealed,
    DividedByMass,
    SoftmaxStart,
    anneal,
)
from sigmoid_attention.integrations.conversion.student import (
    ANNEALED,
    FORMS,
    Student,
    scale_attention_output,
)

__all__ = [
    "ANNEALED",
    "FORMS",
    "Annealed",
    "Calibration",
    "DividedByMass",
    "LayerStream",
    "SoftmaxStart",
    "Student",
    "anneal",
    "attention_layers",
    "damped_error",
    "logit_divergence",
    "next_token_loss",
    "relative_error",
    "scale_attention_output",
]
