"""`sigmoid-attention rates`: measures convergence rates of chosen mixtures of experts."""

import itertools
import math

from sigmoid_attention.cli.lists import names, whole_numbers
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.studies import as_json, run_and_show
from sigmoid_attention.cli.study_options import RatesOptions
from sigmoid_attention.lab.page import PAGE, write
from sigmoid_attention.lab.study import Study
from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.studies.mixtures.cells import Cell, rate_study
from sigmoid_attention.training.files import refuse_other_kinds
from sigmoid_attention.training.terminal import tell


def rates(options: RatesOptions) -> int:
    """Measure the missing rates, print the table, write figure and page; 2 if a task failed."""
    study = study_of(options)
    refuse_other_kinds(options.out, folders=("report",))
    refuse_other_kinds(options.out / "report", files=(PAGE, f"{study.name}.svg"))
    answers, code = run_and_show([study], options.out, options.workers, quiet=options.json)
    page = write(answers, options.out / "report", _command(options)) if answers else None
    figure = page.with_name(f"{study.name}.svg") if page else None
    if options.json:
        findings = [as_json(answer) for answer in answers]
        print_json({"studies": findings, "report": page, "figure": figure})
    elif page:
        tell(f"report: {page}")
        tell(f"figure: {figure}")
    return code


def study_of(options: RatesOptions) -> Study:
    """The study of all combinations of options; ``ValueError`` for an invalid name or number."""
    if not -math.inf < options.claim <= 0:
        raise ValueError(f"claim must be 0 or a negative number, got {options.claim}")
    cells = [
        Cell(
            gate, expert, score, regime, d, k, extra, options.claim,
            quantity="over" if extra else "exact",
        )
        for gate, expert, score, regime, d, k, extra in itertools.product(
            names(options.gate),
            names(options.expert),
            names(options.score),
            names(options.regime),
            whole_numbers("d", options.d),
            whole_numbers("k", options.k),
            whole_numbers("extra", options.extra),
        )
    ]  # fmt: skip
    for cell in cells:
        # Both raise an error for invalid values, before anything is measured.
        Mixture(cell.gate, cell.expert, cell.score, cell.k, cell.d)
        cell.setting(truth_seed=0)
    return rate_study(
        "rates",
        "Rates of mixtures of experts",
        f"Experts are estimated at n^{options.claim:g}.",
        "the command line",
        tuple(dict.fromkeys(cells)),
        quick=options.quick,
    )


def _command(options: RatesOptions) -> str:
    names = ("gate", "expert", "regime", "score", "d", "k", "extra", "claim")
    flags = " ".join(f"--{name} {getattr(options, name)}" for name in names)
    return f"sigmoid-attention rates {flags}{' --quick' * options.quick}"
