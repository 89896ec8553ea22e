"""Kills a training run with SIGKILL at many points, resumes it, and prints the results.

It is a separate script. It imports once and forks a child for every run. It never computes anything
itself, since a fork of a process with threads may hang. It prints one JSON line for the undisturbed
run, then one for each crash point.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
import torch._dynamo  # what the first step of an optimiser imports: here once for all children

from sigmoid_attention.training.recorder import Recorder, read_records
from sigmoid_attention.training.trainer import train
from tests.support.training.runs import digest, tiny_config, tiny_model, tiny_text

REAL_REPLACE = os.replace


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_step(number):
    def on_step(done, _loss):
        if done == number:
            die()

    return on_step


def kill_before_rename(number):
    """The renames are where a checkpoint or a part becomes visible; `number` counts from 1."""
    renames = 0

    def replace(source, target):
        nonlocal renames
        renames += 1
        if renames == number:
            die()
        REAL_REPLACE(source, target)

    os.replace = replace


def records_digest(folder):
    table = read_records(folder)
    columns = [table.column(name).to_pylist() for name in ("step", "module", "value")]
    return hashlib.sha256(repr(columns).encode()).hexdigest()


def run(folder, *, resume, on_step=None):
    model = tiny_model()
    result = train(
        model,
        tiny_text(),
        tiny_config(),
        out=folder,
        resume=resume,
        recorder=Recorder(folder / "records"),
        progress=False,
        on_step=on_step,
    )
    return {
        "digest": digest(model),
        "losses": result.losses,
        "records": records_digest(folder / "records"),
        "first": result.resumed_from,
    }


def in_child(work):
    """Run `work` in a fork; its result, or None where the child was killed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer")
        child = os.fork()
        if child == 0:
            answer.write_text(json.dumps(work()))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        return None if killed else json.loads(answer.read_text())


def report(point, work):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "run")
        crashed = in_child(lambda: work(folder)) is None
        resumed = in_child(lambda: run(folder, resume=True))
        line = {"point": point, "crashed": crashed, **resumed}
        print(json.dumps(line), flush=True)


def crash_at_rename(folder, number):
    kill_before_rename(number)
    return run(folder, resume=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    report("undisturbed", lambda folder: run(folder, resume=False))
    for step in range(1, 5):
        report(
            f"after step {step}",
            lambda folder, step=step: run(folder, resume=False, on_step=kill_after_step(step)),
        )
    for rename in range(1, int(sys.argv[1]) + 1):
        report(f"before rename {rename}", lambda folder, n=rename: crash_at_rename(folder, n))
