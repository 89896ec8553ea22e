"""One rate experiment: model family, true parameters, starting points and bounds.

Shape letters: P parameters, Q inputs.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments
from sigmoid_attention.mixtures import voronoi
from sigmoid_attention.mixtures.data import FiniteDesign
from sigmoid_attention.mixtures.identifiability import jacobian_rank
from sigmoid_attention.mixtures.model import Mixture, free_parameters
from sigmoid_attention.mixtures.solver import ParameterBox

CANDIDATES = 200
REGIMES = ("sparse", "dense")
STARTS = ("near_truth", "random")


@dataclass(frozen=True)
class RateSetting:
    """The setting of one rate experiment, which determines all its numbers.

    Args:
        regime: the true score of the over-specified expert: "sparse" is zero except for the
            intercept (regime 1 of Nguyen et al. 2024), "dense" is not (regime 2).
        k, extra: the number of true experts, and of additional fitted experts. The first true
            expert is over-specified.
        sigma: standard deviation of the noise; 0 is the control without noise.
        start, starts, jitter: fits start around the truth, ``jitter`` away from it, or anywhere at
            random; the best fit of several starts counts.
        nodes: the number of nodes of the finite design, uniform on [-1, 1]^d. With fewer nodes than
            parameters no data could determine the fit.
        sizes, replicates: the numbers of observations, and of data sets of each size.
        truth_seed, seed: the seed of the true parameters, and that of noise and starts.
        half_width: the half width of the box of parameters.
        radius: replaces ``half_width`` by the half width of a box around the truth with its first
            expert repeated; for the limit of the estimates in regime 2 of Nguyen et al. 2024.

    Raises:
        ValueError: an unknown regime or start, a number out of its range, or fewer nodes than
            parameters.

    Example:
        >>> from sigmoid_attention.mixtures.rates.setting import RateSetting
        >>> RateSetting("sigmoid", "gelu", k=3).family.k
        4
    """

    gate: str
    expert: str
    score: str = "linear"
    regime: str = "dense"
    d: int = 2
    k: int = 2
    extra: int = 1
    sigma: float = 0.1
    start: str = "near_truth"
    starts: int = 1
    jitter: float = 0.1
    nodes: int = 256
    sizes: tuple[int, ...] = tuple(round(10 ** (2 + i / 3)) for i in range(10))
    replicates: int = 20
    truth_seed: int = 0
    seed: int = 0
    half_width: float = 10.0
    radius: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("regime", REGIMES), ("start", STARTS)):
            arguments.one_of(name, getattr(self, name), allowed, f"one of {', '.join(allowed)}")
        for name, least in (("extra", 0), ("starts", 1), ("replicates", 1), ("sigma", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be one or more numbers of 1 or more, got {self.sizes}")
        check_nodes(self.nodes, self.family)

    @property
    def truth_family(self) -> Mixture:
        return Mixture(self.gate, self.expert, self.score, self.k, self.d)

    @property
    def family(self) -> Mixture:
        return replace(self.truth_family, k=self.k + self.extra)

    @property
    def inputs_Qd(self) -> Tensor:
        return FiniteDesign.sobol(self.nodes, d=self.d).inputs_Qd

    @property
    def key(self) -> str:
        """A hash of all fields: rows with the same key belong to the same experiment."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_nodes(nodes: int, family: Mixture) -> None:
    """``ValueError`` unless the nodes of a design are as many as the parameters of a fit."""
    if nodes < family.size:
        raise ValueError(f"nodes must be at least the {family.size} parameters, got {nodes}")


# Truths ---------------------------------------------------------------------------------------


def draw_truth(setting: RateSetting) -> voronoi.TrueMixture:
    """The best conditioned of some random mixtures; badly conditioned ones need too large n."""
    return _draw(setting.truth_family, setting.regime, setting.nodes, setting.truth_seed)


# All parts of a study need the same truth, and the search takes as long as a few fits.
@lru_cache(maxsize=64)
def _draw(family: Mixture, regime: str, nodes: int, seed: int) -> voronoi.TrueMixture:
    inputs = FiniteDesign.sobol(nodes, d=family.d).inputs_Qd
    rng = torch.Generator().manual_seed(seed)
    free = free_parameters(family)
    best, best_value = None, -1.0
    for _ in range(CANDIDATES):
        theta = _random(family, rng)
        if regime == "sparse":
            theta[: family.score_size - 1] = 0.0
        value = jacobian_rank(family, theta, inputs, free).smallest
        if value > best_value:
            best, best_value = theta, value
    assert best is not None
    return voronoi.TrueMixture(family, best)


def _random(family: Mixture, rng: torch.Generator) -> Tensor:
    normal = torch.randn(family.k, family.atom_size, generator=rng, dtype=torch.float64)
    normal[:, : family.score_size - 1] *= 2.0
    normal[:, family.score_size - 1] *= 0.5
    normal[:, family.score_size :] *= 1.5
    return normal.flatten()


# Starts and boxes -----------------------------------------------------------------------------


def start(setting: RateSetting, truth: voronoi.TrueMixture, rng: torch.Generator) -> Tensor:
    """The starting point of a fit, (P,)."""
    if setting.start == "random":
        return _random(setting.family, rng)
    theta_P = _repeated(setting, truth, share=True)
    jitter = torch.randn(theta_P.shape, generator=rng, dtype=torch.float64) * setting.jitter
    return theta_P + jitter * free_parameters(setting.family)


def _repeated(setting: RateSetting, truth: voronoi.TrueMixture, *, share: bool) -> Tensor:
    """The true experts with the first one repeated; ``share`` divides its mass among the copies.

    Copies come first, so the last expert stays the reference of a shift-blind gate.
    """
    atoms, copies = truth.atoms, 1 + setting.extra
    first = atoms[0].clone()
    if share:
        intercept = truth.family.score_size - 1
        first[intercept] = _shared_intercept(setting.gate, float(first[intercept]), copies)
    return torch.cat((first.expand(copies, -1), atoms[1:])).flatten()


def _shared_intercept(gate_name: str, intercept: float, copies: int) -> float:
    """The intercept of each copy, such that the masses of the copies sum to one expert's mass."""
    if gate_name in ("softmax", "entmax15", "sparsemax"):
        return intercept - math.log(copies)
    if gate_name in ("sigmoid", "normalised_sigmoid"):
        mass = 1 / (1 + math.exp(-intercept)) / copies
        return math.log(mass / (1 - mass))
    return intercept / copies


def box(setting: RateSetting, truth: voronoi.TrueMixture) -> ParameterBox:
    """The compact parameter set of the theory, with the reference of a shift-blind gate fixed."""
    centre = _repeated(setting, truth, share=False)
    if setting.radius is None:
        bounds = ParameterBox.around_zero(setting.family.size, setting.half_width)
    else:
        bounds = ParameterBox(centre - setting.radius, centre + setting.radius)
    held = ~free_parameters(setting.family)
    return bounds.pinned(held, centre[held]) if held.any() else bounds
