"""Training text: sources with their provenance, tokenizers, batches."""
