"""`python -m benchmarks.gpu.process DEVICE` is the worker process (`worker.py`).

What libraries print, also while they are imported, goes to the standard error, away from messages.
"""

import os
import sys

if __name__ == "__main__":
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch

    from benchmarks.gpu.worker import serve

    serve(sys.stdin, lines, torch.device(sys.argv[1]))
