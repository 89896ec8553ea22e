"""Findings of the routing study, computed from its rows by a rule.

Rule: in each pair, each quantity of a seed is averaged over layers, churn also over the looks that
it is measured between, and sigmoid - softmax over seeds has its 95 % t-interval. The sigmoid is
*better* or *worse* where the interval lies on one side of zero, and else *undecided*, as it is
below three seeds, which give no interval. A difference in loss is *equal* where the interval lies
within 1 % of softmax's loss on either side. The verdict of a pair is that on its loss.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from sigmoid_attention.lab.rows import ARMS, SIGMOID, SOFTMAX
from sigmoid_attention.lab.statistics import Interval, paired_difference, t_interval
from sigmoid_attention.studies.compare.standing import LOSS_MARGIN
from sigmoid_attention.studies.routing.run import arm_name
from sigmoid_attention.studies.routing.setting import PAIRS


@dataclass(frozen=True)
class Quantity:
    """A quantity by which both arms are compared, and its description."""

    metric: str
    label: str
    meaning: str
    lower_is_better: bool


LOSS = Quantity("validation_bits_per_byte", "held-out loss", "bits per byte of held-out text", True)
QUANTITIES = (
    LOSS,
    Quantity("load_entropy", "entropy of the load", "1 is even, 0 one expert for all", False),
    Quantity("largest_load", "largest load", "of one expert, in even loads", True),
    Quantity("similarity", "similarity", "mean cosine of two experts' answers to a token", True),
    Quantity("churn", "churn", "share of tokens whose experts change between two looks", True),
)


@dataclass(frozen=True)
class RoutingFinding:
    """One quantity of one pair: both arms' values, their difference, and the standing."""

    pair: str
    quantity: Quantity
    softmax: Interval
    sigmoid: Interval
    difference: Interval
    standing: str


def findings(rows: pa.Table) -> list[RoutingFinding]:
    """Findings for every pair and quantity measured in both arms, in the order of ``PAIRS``."""
    answer = []
    for pair in PAIRS:
        for quantity in QUANTITIES:
            values = {arm: _by_seed(rows, arm_name(pair, arm), quantity.metric) for arm in ARMS}
            seeds = sorted(values[SOFTMAX].keys() & values[SIGMOID].keys())
            if seeds:
                softmax, sigmoid = ([values[arm][seed] for seed in seeds] for arm in ARMS)
                answer.append(_compare(pair, quantity, softmax, sigmoid))
    return answer


def verdict(findings: Sequence[RoutingFinding]) -> str:
    """One sentence with the verdicts on the losses of all pairs."""
    by_standing: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.quantity is LOSS:
            by_standing[finding.standing].append(f"“{finding.pair}”")
    parts = [f"{standing} in {', '.join(pairs)}" for standing, pairs in by_standing.items()]
    return f"Held-out loss of sigmoid against softmax routing: {'; '.join(parts)}."


def _compare(
    pair: str, quantity: Quantity, softmax: Sequence[float], sigmoid: Sequence[float]
) -> RoutingFinding:
    apart = paired_difference(softmax, sigmoid)
    base = t_interval(softmax)
    margin = LOSS_MARGIN * base.mean if quantity is LOSS else 0.0
    standing = _standing(apart, quantity.lower_is_better, margin)
    return RoutingFinding(pair, quantity, base, t_interval(sigmoid), apart, standing)


def _standing(apart: Interval, lower_is_better: bool, margin: float) -> str:
    low, high = (apart.low, apart.high) if lower_is_better else (-apart.high, -apart.low)
    if not apart.bounded:
        return "undecided"
    if margin and -margin <= low and high <= margin:
        return "equal"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "undecided"


def _by_seed(rows: pa.Table, arm: str, metric: str) -> dict[int, float]:
    """The mean of a metric over layers and looks, by seed."""
    columns = (rows[column].to_pylist() for column in ("arm", "metric", "seed", "value"))
    values: dict[int, list[float]] = defaultdict(list)
    for of, name, seed, value in zip(*columns, strict=True):
        if of == arm and name == metric:
            values[seed].append(value)
    return {seed: sum(of) / len(of) for seed, of in values.items()}
