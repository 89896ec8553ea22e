"""Recipes: position, norms and bias that are chosen together.

"paper" is the language model of Ramapuram et al. 2024 (the released configuration). "recommended"
is the best of this project's own trials. It depends on the position, because the position
determines the number of keys that a head gives weight to. Under rotary and absolute positions these
are all n keys. Hybrid norm removes the size of the attention's output, so the bias may be below
-log n, away from the range where the sigmoid saturates. Under ALiBi these are few keys, and the
bias is set for their number.
"""

from sigmoid_attention.nn.sizes import one_of

PAPER = {
    "position": "alibi",
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_length",
    "bias_offset": 0.0,
}

RECOMMENDED = {
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_length",
    "bias_offset": -2.5,
}

RECOMMENDED_ALIBI = {
    "norm_placement": "pre",
    "qk_norm": "rms",
    "bias": "neg_log_effective_length",
    "bias_offset": 0.0,
}

# Some heads have the slopes of ALiBi and some have none; -log n is the effective length of the
# latter. Taken from trials; no study has compared it yet.
RECOMMENDED_ROPE_ALIBI = {
    "norm_placement": "hybrid",
    "qk_norm": "rms",
    "bias": "neg_log_effective_length",
    "bias_offset": 0.0,
}


def recipe_settings(name: str, position: str | None = None) -> dict[str, str | float]:
    """The settings of a recipe, for its default position or for ``position``.

    Raises ``ValueError`` for names other than "paper" and "recommended".

    Example:
        >>> recipe_settings("recommended")["position"], recipe_settings("paper")["position"]
        ('rope', 'alibi')
    """
    one_of("recipe", name, ("paper", "recommended"), "'paper' or 'recommended'")
    if name == "paper":
        return PAPER if position is None else {**PAPER, "position": position}
    position = "rope" if position is None else position
    by_position = {"alibi": RECOMMENDED_ALIBI, "rope+alibi": RECOMMENDED_ROPE_ALIBI}
    return {"position": position, **by_position.get(position, RECOMMENDED)}
