"""Which position, norms and bias go together: the one place where a recipe is chosen.

"paper" is P1's language model (arXiv 2409.04431; the released configuration). "recommended" is
what this project's own trials favour, and depends on the position, because a position decides how
many keys a head weighs. Rotary and absolute positions leave all n keys in reach: hybrid norm makes
the size of the attention's output irrelevant, so the bias may go below -log n, away from the
range where the sigmoid saturates. Under ALiBi a head weighs few keys, and the bias counts them.
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


def recipe_settings(name: str, position: str | None = None) -> dict[str, str | float]:
    """The settings that a recipe fixes, for its own position or for the one that is given.

    Raises ``ValueError`` for another name than "paper" and "recommended".

    Example:
        >>> recipe_settings("recommended")["position"], recipe_settings("paper")["position"]
        ('rope', 'alibi')
    """
    one_of("recipe", name, ("paper", "recommended"), "'paper' or 'recommended'")
    if name == "paper":
        return PAPER if position is None else {**PAPER, "position": position}
    position = "rope" if position is None else position
    settings = RECOMMENDED_ALIBI if position == "alibi" else RECOMMENDED
    return {"position": position, **settings}
