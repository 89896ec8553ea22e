"""Theorems about sigmoid attention as programs: Jacobian bounds and universal approximation."""
