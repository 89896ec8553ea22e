"""The operator on GPUs from sm_80 on, written in Triton; imported at the first use."""
