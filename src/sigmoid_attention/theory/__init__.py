"""Theorems about sigmoid attention as programs that check themselves."""
