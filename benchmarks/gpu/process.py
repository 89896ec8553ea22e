"""`python -m benchmarks.gpu.process DEVICE` is the process that measures (`worker.py`).

What libraries print, while they are imported too, must not come between the lines that it answers.
"""

import os
import sys

if __name__ == "__main__":
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import torch

    from benchmarks.gpu.worker import serve

    serve(sys.stdin, lines, torch.device(sys.argv[1]))
