"""Claims about sigmoid attention's theory, each in a file with its rule, in the form of a Study."""
