"""The simulations of Nguyen et al. 2024, section 4 and appendix C: truths, data, starts and fits.

Shape letters: T truths, V variants of a run, N observations, Q inputs, d dimension, P parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sigmoid_attention.lab.study import Row
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.model import Mixture, free_parameters
from sigmoid_attention.mixtures.packed_sgd import packed_sgd
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, start
from sigmoid_attention.mixtures.solver import SolverSettings, minimise
from sigmoid_attention.mixtures.voronoi import TrueMixture, voronoi

# Of the paper; beta is (beta1, beta0), and the noise's variance is .01.
D, K = 32, 8
GATE_SD, EXPERT_SD = (0.01 / D) ** 0.5, (1 / D) ** 0.5
PAPER_SIGMA, RATE, EPOCHS = 0.1, 0.1, 10
# Ours: the paper says that starts are near the truth.
JITTER = 0.1
# An expert's gradient carries its gate's weight: 1/2 under a sigmoid, 1/9 under a softmax. The
# curvature carries its square, 20 times as much.
MATCHED_RATE = RATE / 20
# Standard deviation of the noise, and learning rate.
VARIANTS = ((PAPER_SIGMA, RATE), (0.01, RATE), (0.0, RATE), (PAPER_SIGMA, MATCHED_RATE))
# More Levenberg-Marquardt steps do not fit into the budget; a unit of chi2 is less than the noise
# of a single parameter.
SOLVER = SolverSettings(tol=1.0, patience=1, max_iter=40)
FISHER_INPUTS = 2048


@dataclass(frozen=True)
class ProtocolSetting:
    """Some truths, and a fit of each at every size; all recipes have the same data and starts.

    Args:
        gate: of the fitted mixture. truth_gate: of the mixture that gives the data.
        regime: "sparse" if the gate of the over-specified expert ignores the input (regime 1).
        sizes: numbers of observations.
        first_truth, truths: the seeds of the truths.
        batch: of SGD; 0 for least squares.
    """

    gate: str
    expert: str
    truth_gate: str
    regime: str
    sizes: tuple[int, ...]
    first_truth: int
    truths: int
    batch: int = 0

    @property
    def seeds(self) -> range:
        return range(self.first_truth, self.first_truth + self.truths)

    @property
    def rates(self) -> RateSetting:
        """The family with its start and its box; there is no finite design."""
        return RateSetting(self.gate, self.expert, d=D, k=K, jitter=JITTER, nodes=1024)


def variants(gate: str) -> tuple[tuple[float, float], ...]:
    """The matched step is that of a sigmoid."""
    return VARIANTS if gate == "sigmoid" else VARIANTS[:3]


def named(sigma: float, rate: float = RATE) -> str:
    """The name of a loss by its variant."""
    return f"loss, noise {sigma:g}, rate {rate:g}"


# Truths, data and starts ----------------------------------------------------------------------


def draw_truth(setting: ProtocolSetting, seed: int) -> TrueMixture:
    """The mixture that gives the data."""
    family = Mixture(setting.truth_gate, setting.expert, k=K, d=D)
    rng = _generator(seed)
    atoms = torch.randn(K, family.atom_size, generator=rng, dtype=torch.float64)
    atoms[:, : family.score_size] *= GATE_SD
    atoms[:, family.score_size :] *= EXPERT_SD
    if setting.regime == "sparse":
        atoms[0, : family.score_size - 1] = 0.0
    return TrueMixture(family, atoms.flatten())


def fitted_truth(setting: ProtocolSetting, seed: int) -> TrueMixture:
    """The true parameters in the family of the fit, which the loss compares with."""
    truth = draw_truth(setting, seed)
    return TrueMixture(replace(truth.family, gate=setting.gate), truth.theta_P)


def draw_start(setting: ProtocolSetting, seed: int) -> Tensor:
    """The truth with its first expert twice, moved by ``JITTER``, (P,)."""
    return start(setting.rates, fitted_truth(setting, seed), _generator(seed, 1))


def draw_data(setting: ProtocolSetting, seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (N, d), answers without noise (N,), and standard normal noise (N,)."""
    truth, rng = draw_truth(setting, seed), _generator(seed, 2, n)
    inputs_Nd = torch.rand(n, D, generator=rng, dtype=torch.float64) * 2 - 1
    noise_N = torch.randn(n, generator=rng, dtype=torch.float64)
    return inputs_Nd, truth.family.predict(truth.theta_P, inputs_Nd), noise_N


def _generator(*key: int) -> torch.Generator:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


# Fits -----------------------------------------------------------------------------------------


def train(setting: ProtocolSetting) -> Iterator[Row]:
    """The loss after SGD, for every size, truth, noise and learning rate."""
    sigma_V, rate_V = torch.tensor(variants(setting.gate), dtype=torch.float64).T
    family = setting.rates.family
    start_TP = torch.stack([draw_start(setting, seed) for seed in setting.seeds])
    for n in setting.sizes:
        inputs, observations = [], []
        for seed in setting.seeds:
            inputs_Nd, answers_N, noise_N = draw_data(setting, seed, n)
            inputs.append(inputs_Nd.float())
            observations.append((answers_N + sigma_V[:, None] * noise_N).float())
        theta_TVP = packed_sgd(
            family, torch.stack(inputs), torch.stack(observations), start_TP, rate_V=rate_V,
            epochs=EPOCHS, batch=setting.batch, seed=n,
        )  # fmt: skip
        for place, seed in enumerate(setting.seeds):
            loss_V = _loss(setting, theta_TVP[place].double(), seed)
            for variant, loss in zip(variants(setting.gate), loss_V.tolist(), strict=True):
                yield Row(named(*variant), loss, float(n), place)


def solve(setting: ProtocolSetting) -> Iterator[Row]:
    """The loss of least squares from the same starts, and of the starts themselves."""
    for place, seed in enumerate(setting.seeds):
        truth, start_BP = fitted_truth(setting, seed), draw_start(setting, seed)[None]
        yield Row("start", float(_loss(setting, start_BP, seed)), replicate=place)
        for n in setting.sizes:
            inputs_Nd, answers_N, noise_N = draw_data(setting, seed, n)
            data = Samples(inputs_Nd[None], (answers_N + PAPER_SIGMA * noise_N)[None])
            fit = minimise(
                setting.rates.family, data, start_BP, sigma=PAPER_SIGMA,
                box=box(setting.rates, truth), settings=SOLVER,
            )  # fmt: skip
            loss = float(_loss(setting, fit.theta_BP, seed))
            yield Row("loss", loss, float(n), place, -1, bool(fit.converged_B), bool(fit.at_box_B))


def _loss(setting: ProtocolSetting, theta_BP: Tensor, seed: int) -> Tensor:
    """The loss of the papers, each gate's own; NaN where training diverged."""
    lost_B = ~theta_BP.isfinite().all(-1)
    whole_BP = torch.where(lost_B[:, None], 0.0, theta_BP)
    loss_B = voronoi(setting.rates.family, whole_BP, fitted_truth(setting, seed)).total_B
    return torch.where(lost_B, torch.nan, loss_B)


def inform(setting: ProtocolSetting) -> Iterator[Row]:
    """The number of directions with a standard error above ``JITTER``, by the Fisher information.

    It is that of the true number of experts, at the truth: with fewer parameters than the fit has,
    the data determine more.
    """
    for place, seed in enumerate(setting.seeds):
        truth = fitted_truth(setting, seed)
        rng = _generator(seed, 3)
        inputs_Qd = torch.rand(FISHER_INPUTS, D, generator=rng, dtype=torch.float64) * 2 - 1
        _, jacobian_QP = truth.family.predict_with_jacobian(truth.theta_P, inputs_Qd)
        free_QP = jacobian_QP[:, free_parameters(truth.family)]
        information = torch.linalg.eigvalsh(free_QP.mT @ free_QP / FISHER_INPUTS)
        yield Row("directions", float(len(information)), replicate=place)
        for n in setting.sizes:
            error = PAPER_SIGMA / (n * information.clamp(min=1e-300)).sqrt()
            yield Row("wide", float((error > JITTER).sum()), float(n), place)
