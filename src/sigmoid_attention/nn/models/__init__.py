"""Small reference models: their configuration, named sizes, the decoder and its generation."""

from sigmoid_attention.nn.models.config import ModelConfig
from sigmoid_attention.nn.models.decoder import DecoderLM
from sigmoid_attention.nn.models.generate import generate
from sigmoid_attention.nn.models.presets import PRESETS, TRAINING_RECIPES, TrainingRecipe

__all__ = ["PRESETS", "TRAINING_RECIPES", "DecoderLM", "ModelConfig", "TrainingRecipe", "generate"]
