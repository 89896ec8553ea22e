"""Recipes: position, norms and bias that are chosen together.

"paper" is the language model of Ramapuram et al. 2024 (the released configuration). "recommended"
has the settings of this project's trial with centred keys (docs/recipe.md). By default every head
rotates and every second head has the slopes of ALiBi. The bias of a head starts at minus the
logarithm of the number of keys that it effectively sees, and is trained. Keys are centred, and no
head sees farther than in training.

For other positions "recommended" has the settings of an earlier study, without centred keys. Under
rotary positions a head sees all n keys. Hybrid norm removes the size of the attention's output, so
the bias may be below -log n, away from the range where the sigmoid saturates. Under ALiBi a head
sees few keys, and the bias is set for their number. Positions that the study did not have get the
settings of rotary positions.
"""

from typing import Any

from sigmoid_attention.nn.sizes import one_of

# What a recipe has unless it says otherwise: it replaces the settings of another recipe.
PLAIN: dict[str, Any] = {"learn_bias": False, "centred_keys": False, "reach": None}

PAPER = PLAIN | {
    "position": "alibi",
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_length",
    "bias_offset": 0.0,
}

RECOMMENDED = PLAIN | {
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_length",
    "bias_offset": -2.5,
}

RECOMMENDED_ALIBI = PLAIN | {
    "norm_placement": "pre",
    "qk_norm": "rms",
    "bias": "neg_log_effective_length",
    "bias_offset": 0.0,
}

RECOMMENDED_ROPE_ALIBI = PLAIN | {
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_effective_length",
    "bias_offset": 0.0,
    "learn_bias": True,
    "centred_keys": True,
    "reach": "trained",
}


def recipe_settings(name: str, position: str | None = None) -> dict[str, Any]:
    """The settings of a recipe, for its default position or for ``position``.

    Raises ``ValueError`` for names other than "paper" and "recommended".

    Example:
        >>> recipe_settings("recommended")["position"], recipe_settings("paper")["position"]
        ('rope+alibi', 'alibi')
    """
    one_of("recipe", name, ("paper", "recommended"), "'paper' or 'recommended'")
    if name == "paper":
        return PAPER if position is None else {**PAPER, "position": position}
    position = "rope+alibi" if position is None else position
    by_position = {"alibi": RECOMMENDED_ALIBI, "rope+alibi": RECOMMENDED_ROPE_ALIBI}
    return {"position": position, **by_position.get(position, RECOMMENDED)}
