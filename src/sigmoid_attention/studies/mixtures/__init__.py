"""The studies of the mixtures laboratory, one file a claim."""
