"""The operator on GPUs from sm_80 on, written in Triton; imported only where it is asked for."""
