"""Does sigmoid attention pay? The comparison behind `sigmoid-attention compare`."""
