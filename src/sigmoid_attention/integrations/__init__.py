"""Sigmoid attention with the interfaces of other libraries, one module for each library."""
