"""Studies of published claims about the theory of sigmoid attention."""
