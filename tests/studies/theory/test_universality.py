"""The study of trained sizes: synthetic rows, and one small run from end to end."""

import dataclasses

import pytest
import torch

from sigmoid_attention.lab.figure import svg
from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.theory.universality import (
    SequenceRegressor,
    UniversalitySetting,
    findings,
    report,
    run,
    trained_units,
)
from sigmoid_attention.studies.theory.universality_figure import size_figure, steepness_figure

SETTING = UniversalitySetting(("max", "edge"), seeds=3, sizes=((1, 2), (1, 4)), error=0.1)
SMALL = UniversalitySetting(
    ("centre",),
    n=2,
    error=0.2,
    seeds=1,
    sizes=((1, 2),),
    steps=3,
    pool=64,
    samples=64,
    steepnesses=(4.0, 200.0),
)


@pytest.fixture
def store(tmp_path):
    """Errors of 0.12 and 0.06 by size; softmax's larger size varies too much from seed to seed."""
    store = Store(tmp_path / "study", {}, {}, resume=False)
    for name in SETTING.functions:
        rows = [ArmRow("proof", name, 0.5, "L2", step=420, length=1)]
        rows += [ArmRow("proof", name, 0.08, "L2", step=42_000, length=9)]
        rows += [ArmRow("heaviside", name, 0.09, "L2")]
        rows += [ArmRow(f"steepness {s:g}", name, 1 / s, "L2") for s in (10.0, 2.0)]
        store.put(f"proof-{name}", rows)
    for name, arm, (layers, dim), seed in trained_units(SETTING):
        error = {2: 0.12, 4: 0.06}[dim] + (0.03 * seed if arm == "softmax" else 0.001 * seed)
        row = ArmRow(f"{arm} {layers}x{dim}", name, error, "L2", seed, step=100 * dim)
        store.put(f"{name}-{arm}-{dim}-{seed}", [row])
    return store


def test_the_smallest_size_is_one_whose_interval_stays_below(store):
    results = findings(store, SETTING)[0]
    assert (results.hard, results.built) == (0.09, 42_000)
    assert list(results.by_steepness.items()) == [(2.0, 0.5), (10.0, 0.1)]
    assert results.trained["softmax"][400].mean == pytest.approx(0.09)
    assert results.smallest("sigmoid", 0.1) == 400
    assert results.smallest("softmax", 0.1) is None
    assert results.smallest("sigmoid", 0.2) == 200


def test_the_report_gives_the_gap(store):
    lines = report(findings(store, SETTING), 0.1).splitlines()
    assert lines[2] == "| max | 42,000 | 400 | none | 105 |"
    assert len(lines) == 2 + len(SETTING.functions)


def test_fewer_functions_seeds_and_sizes_may_be_chosen(store):
    smaller = dataclasses.replace(SETTING, functions=("edge",), seeds=1, sizes=((1, 4),))
    (finding,) = findings(store, smaller)
    assert list(finding.trained["sigmoid"]) == [400]
    assert finding.trained["softmax"][400].n == 1
    assert finding.smallest("softmax", 0.1) == 400


def test_figures(store):
    results = findings(store, SETTING)
    picture = svg(size_figure(results)).decode()
    assert picture.count("parameters") >= len(results)
    for text in ("max", "edge", "proof", "trained, sigmoid", "trained, softmax"):
        assert text in picture
    picture = svg(
        steepness_figure({finding.name: finding.by_steepness for finding in results}, 0.1)
    ).decode()
    assert "steepness" in picture and "requested" in picture


def test_a_run_goes_on_with_what_is_there(tmp_path, capsys):
    first = run(tmp_path, SMALL).rows()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    more = dataclasses.replace(SMALL, seeds=2)
    rows = run(tmp_path, more, resume=True).rows()
    assert rows.num_rows == first.num_rows + 2
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    (finding,) = findings(run(tmp_path, more, resume=True), more)
    assert finding.hard <= 0.2 < finding.by_steepness[4.0]
    assert finding.by_steepness[200.0] == pytest.approx(finding.hard)
    assert finding.built == max(finding.proof) == 14 * 42
    assert finding.trained["sigmoid"].keys() == finding.trained["softmax"].keys()
    with pytest.raises(ValueError, match="--resume: steps was 3"):
        run(tmp_path, dataclasses.replace(SMALL, steps=4), resume=True)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_trained_transformer_is_equivariant(activation):
    torch.manual_seed(0)
    model = SequenceRegressor(n=5, d=2, layers=2, dim=6, activation=activation)
    x_BND, order = torch.randn(3, 5, 2), [4, 1, 0, 3, 2]
    with torch.no_grad():
        answer = model(x_BND)
        torch.testing.assert_close(model(x_BND[:, order]), answer[:, order], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(answer, model(x_BND.roll(1, dims=0)), atol=1e-3)


@pytest.mark.parametrize("name", ["seeds", "steps"])
def test_counts_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        dataclasses.replace(SETTING, **{name: 0})
