"""Implementations that no hardware has run yet: `impl="auto"` never takes them."""
