"""The decoders of the routing study: pairs that differ only in the gate of the router.

Both arms of a pair have the same text, initial weights, parameters and operations. Pairs differ in
the number of experts per token and in the load balancing.
"""

from dataclasses import dataclass
from typing import Any

from sigmoid_attention.nn.models.config import ModelConfig
from sigmoid_attention.nn.moe import MoEConfig
from sigmoid_attention.training.data.tokenizer import ByteTokenizer

# Fields of `MoEConfig`. Top-2 weights are divided by their sum, as in Mixtral and DeepSeek-V3. With
# all experts, sigmoid weights are not, as in the mixture of Nguyen et al. 2024 (arXiv 2405.13997).
# The balancing loss has the weight of Fedus et al. 2022. The balancing bias moves ten times as far
# per step as in DeepSeek-V3, because a run here has only hundreds of steps.
PAIRS: dict[str, dict[str, Any]] = {
    "top-2": {"top_k": 2, "normalize": True},
    "top-2, balance loss": {"top_k": 2, "normalize": True, "switch_loss": 0.01},
    "top-2, bias": {"top_k": 2, "normalize": True, "balance_rate": 0.01},
    "all experts": {"top_k": None},
}
FIRST_SEED = 100


@dataclass(frozen=True)
class RoutingSetting:
    """Sizes of the study; lengths in tokens, which are bytes here.

    Every ``record_every`` steps the chosen experts of ``probe_tokens`` tokens of held-out text, or
    of all of it, are recorded. Raises ``ValueError`` for a number that is not positive.
    """

    data: str = "stdlib"
    seeds: int = 4
    steps: int = 300
    warmup_steps: int = 30
    lr: float = 1e-2
    batch_size: int = 8
    seq_len: int = 128
    dim: int = 64
    layers: int = 2
    num_heads: int = 4
    experts: int = 8
    expert_hidden: int = 64
    record_every: int = 50
    probe_tokens: int = 2048
    heldout_bytes: int = 32_768

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str) and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")


def model_config(pair: str, arm: str, setting: RoutingSetting) -> ModelConfig:
    """The decoder of an arm ("softmax" or "sigmoid") of a pair.

    Example:
        >>> moe = model_config("top-2", "softmax", RoutingSetting()).moe
        >>> moe.gate, moe.top_k, moe.experts
        ('softmax', 2, 8)
    """
    moe = MoEConfig(setting.experts, setting.expert_hidden, gate=arm, **PAIRS[pair])
    return ModelConfig.recipe(
        "recommended",
        vocab_size=ByteTokenizer.vocab_size,
        dim=setting.dim,
        layers=setting.layers,
        num_heads=setting.num_heads,
        max_seq_len=setting.seq_len,
        position="rope",
        moe=moe,
    )


def active_parameters(config: ModelConfig) -> int:
    """The number of parameters that multiply a token: half the operations of its forward pass.

    Example:
        >>> config = model_config("top-2", "sigmoid", RoutingSetting())
        >>> active_parameters(config)
        99392
    """
    moe = config.moe
    assert moe is not None
    visits = moe.experts if moe.top_k is None else moe.top_k
    expert = 3 * config.dim * moe.hidden
    per_layer = 4 * config.dim**2 + moe.experts * config.dim + visits * expert
    return config.layers * per_layer + config.vocab_size * config.dim
