"""The universality theorem as a program: a transformer for a given function and error.

Ramapuram et al. 2024, as recalled: for every continuous permutation-equivariant f on a compact
set of R^{n x d}, every 1 <= p < inf and every error > 0 there is a transformer g of the class
T^{4,1,4} with sigmoid attention and

    ( integral ||f(X) - g(X)||_p^p dX )^(1/p) <= error.

Shape letters: S sequences, N tokens, D channels.
"""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Integral, Real

from sigmoid_attention.attention import arguments
from sigmoid_attention.theory.universality.context import chaining, counting
from sigmoid_attention.theory.universality.equivariance import check_equivariance
from sigmoid_attention.theory.universality.functions import Function
from sigmoid_attention.theory.universality.grid import Grid, values
from sigmoid_attention.theory.universality.layers import Network
from sigmoid_attention.theory.universality.mapping import Contexts, contexts, value_mapping
from sigmoid_attention.theory.universality.measure import ErrorEstimate, Target
from sigmoid_attention.theory.universality.plan import (
    MAX_LAYERS,
    Plan,
    layer_counts,
    parameters_of,
    refuse_layers,
)
from sigmoid_attention.theory.universality.quantisation import (
    clipping,
    lost,
    rounding,
    scaling,
)

SAMPLES = 2048
# Seeds of the sequences for choosing the cells, and for measuring the error.
CHOOSING, MEASURING = 1, 2
MOST_CELLS = 2**12


@dataclass(frozen=True)
class Design:
    """The plan of a transformer before it is built: chosen cells and numbers of layers.

    Attributes:
        grid_error: the measured error of f at the centres of the cells of ``grid``.
    """

    f: Function
    grid: Grid
    p: float
    samples: int
    grid_error: ErrorEstimate

    @property
    def layers(self) -> dict[str, int]:
        """The number of layers of each step, from `layer_counts`."""
        return layer_counts(self.grid)

    @property
    def parameters(self) -> int:
        """The number of parameters, with one block of T^{4,1,4} a layer: 26 d + 16 each."""
        return parameters_of(self.grid)


@dataclass(frozen=True)
class Construction:
    """The transformer that was built, with its error bounds and its measured error.

    Attributes:
        plan: the numbers of the construction.
        hard: the network with Heaviside attention; ``hard.with_steepness(s)`` has sigmoids.
        mapper: the layers before the value mapping.
        contexts: the output of ``mapper`` for every sequence of the grid.
        lost: a bound on the error from tokens on ramps, too rare to occur among random sequences.
        target: f at sequences that were not used for choosing the cells.
    """

    plan: Plan
    hard: Network
    mapper: Network
    contexts: Contexts
    lost: float
    target: Target

    def error(self, steepness: float | None = None) -> ErrorEstimate:
        """The measured L^p error with Heaviside attention, or with sigmoids if steepness > 0."""
        if steepness is None:
            return self.target.error(self.hard)
        if not 0 < steepness < math.inf:
            raise ValueError(f"steepness must be positive and finite, got {steepness}")
        return self.target.error(self.hard.with_steepness(steepness))


def design(
    f: Function,
    *,
    n: int,
    d: int,
    error: float,
    p: float = 2.0,
    low: float = 0.0,
    high: float = 1.0,
    max_layers: int = MAX_LAYERS,
    samples: int = SAMPLES,
) -> Design:
    """Test f, choose the cells and count the layers, without building the transformer.

    Arguments and errors are those of `universal_transformer`, without the float64 error.

    Example:
        >>> chosen = design(lambda x: x - x.mean(0), n=2, d=1, error=0.2)
        >>> chosen.grid.cells, sum(chosen.layers.values()), chosen.parameters
        (2, 14, 588)
    """
    for name, number in {"error": error, "p": p, "max_layers": max_layers}.items():
        arguments.instance(name, number, Real, "a number")
    arguments.instance("samples", samples, Integral, "a whole number")
    if not 0 < error < math.inf:
        raise ValueError(f"error must be positive and finite, got {error}")
    if not 1 <= p < math.inf:
        raise ValueError(f"p must be at least 1 and finite, got {p}")
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
    box = Grid(n, d, cells=1, low=low, high=high)
    check_equivariance(f, box)
    grid, grid_error = choose_cells(f, box, error, Target.sample(f, box, p, samples, CHOOSING))
    refuse_layers(grid, max_layers, f"{error:g}")
    return Design(f, grid, p, samples, grid_error)


def choose_cells(
    f: Function, box: Grid, error: float, target: Target
) -> tuple[Grid, ErrorEstimate]:
    """The smallest number of cells a side that meets the error, and its measured error.

    The criterion is the upper bound of the measured error of f at the centres of cells. The number
    is doubled until the error is small enough, then bisected; this assumes that more cells never
    increase the error. Raises ``ValueError`` where 4096 cells are not enough.
    """

    def at(cells: int) -> tuple[Grid, ErrorEstimate]:
        grid = dataclasses.replace(box, cells=cells)
        return grid, target.grid_error(grid)

    few, enough = 0, 1
    while (choice := at(enough))[1].high > error:
        if enough == MOST_CELLS:
            raise ValueError(
                f"error: {error:g} is not reached with {MOST_CELLS} cells a side, "
                f"where it is still {choice[1]}"
            )
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        tried = at(middle)
        if tried[1].high > error:
            few = middle
        else:
            enough, choice = middle, tried
    return choice


def build(chosen: Design) -> Construction:
    """Build the designed transformer; ``ValueError`` where float64 cannot represent it."""
    f, grid = chosen.f, chosen.grid
    outputs_SND = values(f, grid.centres(grid.all_sequences()))
    plan = Plan(grid, float(outputs_SND.amin()), float(outputs_SND.amax()))
    plan.refuse()
    mapper = Network([*scaling(grid), *rounding(grid), *counting(plan), *chaining(plan)])
    contexts_of_grid = contexts(mapper, plan, outputs_SND)
    clip = clipping(grid.d, plan.low, plan.high)
    return Construction(
        plan=plan,
        hard=Network([*mapper.layers, *value_mapping(contexts_of_grid, plan), *clip]),
        mapper=mapper,
        contexts=contexts_of_grid,
        lost=lost(grid, plan.low, plan.high, chosen.p),
        target=Target.sample(f, grid, chosen.p, chosen.samples, MEASURING),
    )


def universal_transformer(
    f: Function,
    *,
    n: int,
    d: int,
    error: float,
    p: float = 2.0,
    low: float = 0.0,
    high: float = 1.0,
    max_layers: int = MAX_LAYERS,
    samples: int = SAMPLES,
) -> Construction:
    """Build a transformer of T^{4,1,4} within ``error`` of f in L^p on a box [low, high]^{n x d}.

    f is replaced by its values at the centres of cells; the cells are so small that this changes f
    by less than the error. Feed-forward layers round tokens to cells (`quantisation`). Attention
    layers give every token of every sequence its own code (`context`). Feed-forward layers turn
    each code into the value of f (`mapping`).

    Args:
        f: takes and returns (n, d) in float64, equivariant under permutations of the n tokens.
        n, d: tokens and channels.
        error: the largest allowed L^p error; p-th powers of entries are summed and integrated.
        p: the exponent of that norm, at least 1.
        low, high: the ends of the box; entries outside are moved to its border.
        max_layers: the largest number of layers; contexts, one layer each, grow as cells^{n d}.
        samples: the number of random sequences for measuring errors.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of range; f is not equivariant (with a counterexample), not
            float64 or not finite; the error needs more layers than ``max_layers`` (with their
            number); or float64 cannot represent the construction (with its smallest gap).

    Example:
        >>> built = universal_transformer(lambda x: x - x.mean(0), n=2, d=1, error=0.2)
        >>> len(built.hard.layers), built.contexts.duplicates, built.error().value < 0.2
        (14, 0, True)
        >>> abs(built.error(built.plan.steepness).value - built.error().value) < built.plan.gap
        True
    """
    return build(
        design(
            f,
            n=n,
            d=d,
            error=error,
            p=p,
            low=low,
            high=high,
            max_layers=max_layers,
            samples=samples,
        )
    )
