"""Text to train on: sources with their provenance, tokenizers, batches."""
