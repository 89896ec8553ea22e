"""Sigmoid attention under the names of other libraries; each one is imported by its own module."""
