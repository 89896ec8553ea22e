"""The implementations of sigmoid attention; all are tested against the definition, `reference`."""
