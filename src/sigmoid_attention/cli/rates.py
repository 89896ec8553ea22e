"""`sigmoid-attention rates`: rates of the cells that are asked for, with controls and verdicts."""

import itertools
import math

from sigmoid_attention.cli.arguments import Rates
from sigmoid_attention.cli.lists import names, whole_numbers
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.studies import carry_out, described
from sigmoid_attention.lab.page import PAGE, write
from sigmoid_attention.lab.study import Study
from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.studies.mixtures.cells import Cell, rate_study
from sigmoid_attention.training.files import refuse_other_kinds
from sigmoid_attention.training.terminal import tell


def rates(asked: Rates) -> int:
    """Measure what is missing, print the table and write figure and page; 2 if a task raised."""
    study = asked_study(asked)
    refuse_other_kinds(asked.out, folders=("report",))
    refuse_other_kinds(asked.out / "report", files=(PAGE, f"{study.name}.svg"))
    answers, code = carry_out([study], asked.out, asked.workers, quiet=asked.json)
    page = write(answers, asked.out / "report", _command(asked)) if answers else None
    figure = page.with_name(f"{study.name}.svg") if page else None
    if asked.json:
        found = [described(one) for one in answers]
        print_json({"studies": found, "report": page, "figure": figure})
    elif page:
        tell(f"report: {page}")
        tell(f"figure: {figure}")
    return code


def asked_study(asked: Rates) -> Study:
    """The study of all combinations; ``ValueError`` for a name or a number that cannot be meant."""
    if not -math.inf < asked.claim <= 0:
        raise ValueError(f"claim must be 0 or a negative number, got {asked.claim}")
    cells = [
        Cell(
            gate, expert, score, regime, d, k, extra, asked.claim,
            quantity="over" if extra else "exact",
        )
        for gate, expert, score, regime, d, k, extra in itertools.product(
            names(asked.gate), names(asked.expert), names(asked.score), names(asked.regime),
            whole_numbers("d", asked.d), whole_numbers("k", asked.k),
            whole_numbers("extra", asked.extra),
        )
    ]  # fmt: skip
    for cell in cells:
        # What these refuse is to be said before anything is measured.
        Mixture(cell.gate, cell.expert, cell.score, cell.k, cell.d)
        cell.setting(truth_seed=0)
    return rate_study(
        "rates",
        "Rates of mixtures of experts",
        f"Experts are estimated at n^{asked.claim:g}.",
        "the command line",
        tuple(dict.fromkeys(cells)),
        quick=asked.quick,
    )


def _command(asked: Rates) -> str:
    options = ("gate", "expert", "regime", "score", "d", "k", "extra", "claim")
    said = " ".join(f"--{name} {getattr(asked, name)}" for name in options)
    return f"sigmoid-attention rates {said}{' --quick' * asked.quick}"
