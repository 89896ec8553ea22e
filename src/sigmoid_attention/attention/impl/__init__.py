"""The implementations of the operator: `reference` defines it, the others are tested against it."""
