"""Extra memory of one call: the rise of the peak memory of a new process.

`python -m benchmarks.memory PEER THREADS CASE` (a case as JSON) is that process. It computes
a short case first, which loads all libraries, and prints the rise in bytes.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.operations import Case, inputs, work
from benchmarks.peers import PEERS
from sigmoid_attention.training.environment import peak_process_bytes

ROOT = Path(__file__).parents[1]
WARM_UP_LENGTH = 128


def extra_bytes(case: Case, peer: str, threads: int) -> int:
    """The bytes by which one call raises the peak, without its inputs.

    Raises ``RuntimeError`` with the last line of the process' errors if it fails.
    """
    arguments = [peer, str(threads), json.dumps(asdict(case))]
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if child.returncode != 0:
        raise RuntimeError(child.stderr.strip().rpartition("\n")[2])
    return int(child.stdout)


def measure_here(case: Case, peer: str) -> int:
    """The same in this process, whose memory must not have been higher before."""
    cpu = torch.device("cpu")
    for step in (replace(case, length=WARM_UP_LENGTH), case):
        compute = work(step, inputs(step, cpu), PEERS[peer](step))
        before = peak_process_bytes()
        compute()
    return peak_process_bytes() - before


if __name__ == "__main__":
    peer, threads, case = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(measure_here(Case(**json.loads(case)), peer))
