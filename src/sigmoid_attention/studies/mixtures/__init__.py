"""Studies of published claims about mixtures of experts."""
