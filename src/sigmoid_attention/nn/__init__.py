"""Layers that train with sigmoid attention, and models built from them."""

from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.nn.balance import LoadBalancer, sequence_loss, switch_loss, z_loss
from sigmoid_attention.nn.block import Block, Residual
from sigmoid_attention.nn.cache import KVCache
from sigmoid_attention.nn.experts import Experts
from sigmoid_attention.nn.feed_forward import GELUFeedForward, SwiGLU
from sigmoid_attention.nn.gate import Gate
from sigmoid_attention.nn.mass_exponent import MassExponent
from sigmoid_attention.nn.models import (
    PRESETS,
    TRAINING_RECIPES,
    DecoderLM,
    ModelConfig,
    TrainingRecipe,
    generate,
)
from sigmoid_attention.nn.moe import MoE, MoEConfig
from sigmoid_attention.nn.multihead import SigmoidMultiheadAttention
from sigmoid_attention.nn.norm import LayerScale, QKNorm, RMSNorm
from sigmoid_attention.nn.position import (
    CAPE,
    ALiBi,
    AttentionPosition,
    EmbeddingPosition,
    LearnedPosition,
    RoPE,
    RoPEWithALiBi,
    SinCos,
    alibi_slopes,
)
from sigmoid_attention.nn.replace import replace_multihead_attention
from sigmoid_attention.nn.router import Router, Routing, record_routing
from sigmoid_attention.nn.softmax import softmax_attention, softmax_statistics
from sigmoid_attention.nn.state_bias import StateBias
from sigmoid_attention.nn.value_residual import ValueResidual

__all__ = [
    "CAPE",
    "PRESETS",
    "TRAINING_RECIPES",
    "ALiBi",
    "Attention",
    "AttentionPosition",
    "Block",
    "DecoderLM",
    "EmbeddingPosition",
    "Experts",
    "GELUFeedForward",
    "Gate",
    "KVCache",
    "LayerScale",
    "LearnedPosition",
    "LoadBalancer",
    "MassExponent",
    "MoE",
    "MoEConfig",
    "ModelConfig",
    "QKNorm",
    "RMSNorm",
    "Residual",
    "RoPE",
    "RoPEWithALiBi",
    "Router",
    "Routing",
    "SigmoidMultiheadAttention",
    "SinCos",
    "StateBias",
    "SwiGLU",
    "TrainingRecipe",
    "ValueResidual",
    "alibi_slopes",
    "generate",
    "record_routing",
    "replace_multihead_attention",
    "sequence_loss",
    "softmax_attention",
    "softmax_statistics",
    "switch_loss",
    "z_loss",
]
