"""The kernels for Hopper: what Triton's compiler does not find by itself is written out here."""
