"""Named sizes: three published language models with their training recipes, and small models.

Source of the published ones: Ramapuram et al. 2024 (arXiv 2409.04431), the released configurations.
"""

from dataclasses import dataclass

from sigmoid_attention.nn.models.config import ModelConfig

BYTES_AND_END = 257


def _gala(dim: int, layers: int, num_heads: int, ffn_dim: int) -> ModelConfig:
    return ModelConfig.recipe(
        "paper",
        vocab_size=32_768,
        dim=dim,
        layers=layers,
        num_heads=num_heads,
        ffn_dim=ffn_dim,
        max_seq_len=4096,
    )


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig.recipe(
        "recommended",
        vocab_size=BYTES_AND_END,
        dim=32,
        layers=2,
        num_heads=2,
        ffn_dim=96,
        max_seq_len=32,
    ),
    "small": ModelConfig.recipe(
        "recommended",
        vocab_size=BYTES_AND_END,
        dim=128,
        layers=4,
        num_heads=4,
        ffn_dim=352,
        max_seq_len=256,
    ),
    "medium": ModelConfig.recipe(
        "recommended",
        vocab_size=BYTES_AND_END,
        dim=256,
        layers=6,
        num_heads=4,
        ffn_dim=704,
        max_seq_len=512,
    ),
    "gala-85m": _gala(dim=768, layers=12, num_heads=12, ffn_dim=2048),
    "gala-1b": _gala(dim=2048, layers=24, num_heads=32, ffn_dim=5632),
    "gala-7b": _gala(dim=4096, layers=32, num_heads=32, ffn_dim=11008),
}


@dataclass(frozen=True)
class TrainingRecipe:
    """The training figures of a published model. This project trains the small models only.

    AdamW with decoupled weight decay; linear warm-up, then a cosine to ``min_lr_ratio`` of
    ``peak_lr``. ``mup_multiplier`` scales the update of every weight matrix of attention and
    feed-forward layers (768 / dim), of nothing else. ``global_batch`` counts sequences of
    ``seq_len`` tokens.

    Example:
        >>> TRAINING_RECIPES["gala-7b"].tokens
        1048576000000
    """

    steps: int
    global_batch: int
    mup_multiplier: float
    seq_len: int = 4096
    peak_lr: float = 0.01
    min_lr_ratio: float = 0.1
    warmup_steps: int = 5000
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float = 1.0

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step reads."""
        return self.global_batch * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.tokens_per_step


TRAINING_RECIPES: dict[str, TrainingRecipe] = {
    "gala-85m": TrainingRecipe(steps=400_000, global_batch=256, mup_multiplier=1.0),
    "gala-1b": TrainingRecipe(steps=300_000, global_batch=256, mup_multiplier=0.375),
    "gala-7b": TrainingRecipe(steps=250_000, global_batch=1024, mup_multiplier=0.1875),
}
