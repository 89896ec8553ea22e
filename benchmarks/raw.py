"""One fit to raw observations: its time, and how much memory a process needs for it.

`python -m benchmarks.raw GATE EXPERT N` is that process, so that its peak is that of the fit.
"""

import json
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from sigmoid_attention.mixtures.data import RawData, binned
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth, start
from sigmoid_attention.mixtures.solver import SolverSettings, minimise
from sigmoid_attention.training.environment import peak_process_bytes

# Cells along an axis of the grid on which a fit begins, and what chi2 it may leave at its end.
BINS, STOP = 160, SolverSettings(tol=1e-3)


def fit_raw(gate: str, expert: str, n: int) -> dict[str, Any]:
    """CPU seconds, the process's peak so far, iterations, and whether the fit converged.

    It starts from the fit to the means over the cells of a grid, since most iterations go along a
    valley that cells show as well as rows do; where it ends is a minimum over all rows.
    """
    setting = RateSetting(gate, expert)
    truth = draw_truth(setting)
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (n, setting.d))
    observations = truth.family.predict(truth.theta_P, torch.from_numpy(inputs)).numpy()
    observations += setting.sigma * rng.standard_normal(n)
    begin = start(setting, truth, torch.Generator().manual_seed(0))[None]
    bounds = box(setting, truth)
    fitted = partial(minimise, setting.family, sigma=setting.sigma, box=bounds, settings=STOP)
    started = time.process_time()
    coarse = fitted(binned(inputs, observations, BINS), begin)
    fit = fitted(RawData.of(inputs, observations), coarse.theta_BP)
    return {
        "seconds": time.process_time() - started,
        "bytes": peak_process_bytes(),
        "iterations": (int(coarse.iterations_B), int(fit.iterations_B)),
        "converged": bool(fit.converged_B),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    gate, expert, n = sys.argv[1:]
    print(json.dumps(fit_raw(gate, expert, int(n))))
