"""`sigmoid-attention universality`: builds the theorem's transformer and measures its error."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.study_options import UniversalityOptions
from sigmoid_attention.lab.figure import svg
from sigmoid_attention.studies.theory.universality import (
    UniversalityFindings,
    UniversalitySetting,
    findings,
    report,
    run,
)
from sigmoid_attention.studies.theory.universality_figure import size_figure, steepness_figure
from sigmoid_attention.theory.universality import (
    FUNCTIONS,
    Construction,
    Design,
    Function,
    build,
    design,
    function,
)
from sigmoid_attention.training.files import refuse_other_kinds, write_whole
from sigmoid_attention.training.terminal import tell

# The number of steepnesses in the figure, in half octaves below the sufficient one.
HALF_OCTAVES = 9
WIDTH = 14


def universality(options: UniversalityOptions) -> None:
    """Print sizes, build, print errors, write figures; with ``trained`` also run the study."""
    # With --json the tables are progress, and go to standard error.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        results = _build_and_measure(options)
    if options.json:
        print_json(results)


def _build_and_measure(options: UniversalityOptions) -> dict[str, Any]:
    names = tuple(FUNCTIONS) if options.function == "all" else tuple(options.function.split(","))
    refuse_other_kinds(options.out, files=("steepness.svg", "size.svg"), folders=("trained",))
    # The user's functions are imported from the current folder.
    sys.path.append(os.getcwd())
    # Bad input is refused before anything is built.
    functions = {name: checked_function(name, options.n, options.d) for name in names}
    setting = trained_setting(names, options) if options.trained else None
    sweeps, results = {}, {}
    for name, f in functions.items():
        chosen = design(
            f,
            n=options.n,
            d=options.d,
            error=options.error,
            p=options.p,
            low=options.low,
            high=options.high,
            max_layers=options.max_layers,
            samples=options.samples,
        )
        show_design(name, chosen)
        built = build(chosen)
        sweeps[name] = show_construction(built, options.steepness)
        results[name] = {
            "layers": sum(chosen.layers.values()),
            "parameters": chosen.parameters,
            "smallest_gap": built.contexts.smallest_gap,
            "error": built.error().value,
            "steepness": built.plan.steepness,
            "error_by_steepness": sweeps[name],
        }
    figure = options.out / "steepness.svg"
    write_whole(figure, svg(steepness_figure(sweeps, options.error)))
    tell(f"figure: {figure}")
    answer: dict[str, Any] = {"functions": results, "figure": figure}
    if setting is not None:
        answer["trained"] = train_as_well(setting, options.out)
    return answer


def checked_function(name: str, n: int, d: int) -> Function:
    """The function called ``name``; ``ValueError`` if it does not map (n, d) to (n, d)."""
    wanted = f"must map a tensor of shape (n, d) = ({n}, {d}) to one of the same shape"
    if name in FUNCTIONS:
        return function(name)
    try:
        chosen = function(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith("function"):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"function: {name!r} {wanted}; it raised {reason}") from error
    try:
        returned = chosen(torch.rand(n, d, dtype=torch.float64))
    # A user's function may raise any exception.
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"function: {name!r} {wanted}; it raised {reason}") from error
    if not isinstance(returned, torch.Tensor) or returned.shape != (n, d):
        got = (
            f"shape {tuple(returned.shape)}"
            if isinstance(returned, torch.Tensor)
            else type(returned).__name__
        )
        raise ValueError(f"function: {name!r} {wanted}; it gave {got}")
    return chosen


def trained_setting(names: tuple[str, ...], options: UniversalityOptions) -> UniversalitySetting:
    """The setting of the study of trained transformers; ``ValueError`` for another norm or box."""
    if (options.p, options.low, options.high) != (2.0, 0.0, 1.0):
        raise ValueError("trained: compares at p = 2 on the box [0, 1] only")
    return UniversalitySetting(
        names,
        n=options.n,
        d=options.d,
        error=options.error,
        seeds=options.seeds,
        steps=options.steps,
        samples=options.samples,
        max_layers=options.max_layers,
    )


def show_design(name: str, chosen: Design) -> None:
    """Print the design before it is built."""
    grid = chosen.grid
    steps = ", ".join(f"{step} {count:,}" for step, count in chosen.layers.items())
    _line(name, f"n = {grid.n}, d = {grid.d}, box [{grid.low:g}, {grid.high:g}], p = {chosen.p:g}")
    _line("grid", f"{grid.cells} cells a side, {grid.letters:,} letters")
    _line("contexts", f"{grid.contexts:,} in {grid.sequences:,} sequences up to order")
    _line("layers", f"{sum(chosen.layers.values()):,}: {steps}")
    _line("parameters", f"{chosen.parameters:,}")


def show_construction(built: Construction, steepness: float | None) -> dict[float, float]:
    """Print the construction and its measurements; return the errors by steepness."""
    enough = built.plan.steepness
    steep = enough if steepness is None else steepness
    hard, soft = built.error(), built.error(steep)
    _line(
        "smallest gap",
        f"{built.contexts.smallest_gap:.3g} between codes up to {built.contexts.codes_C[0]:.4g}; "
        f"{built.plan.digits} of 53 binary digits, {built.contexts.duplicates} collisions",
    )
    _line("error", f"{hard} with Heaviside attention")
    _line("", f"{soft} with sigmoids of steepness {steep:.4g} (enough: {enough:.4g})")
    _line("", f"at most {built.lost:.2g} more for tokens on ramps, too rare to be met")
    print()
    errors = {steep: soft.value}
    for half in range(HALF_OCTAVES):
        below = enough * 2 ** (-half / 2)
        errors[below] = built.error(below).value
    return dict(sorted(errors.items()))


def train_as_well(setting: UniversalitySetting, out: Path) -> Sequence[UniversalityFindings]:
    """Run or continue the study of trained transformers in OUT/trained, and show its findings."""
    results = findings(run(out / "trained", setting, resume=True), setting)
    print(report(results, setting.error))
    figure = out / "size.svg"
    write_whole(figure, svg(size_figure(results)))
    tell(f"figure: {figure}")
    return results


def _line(name: str, text: str) -> None:
    tell(f"{name:<{WIDTH}}{text}")
