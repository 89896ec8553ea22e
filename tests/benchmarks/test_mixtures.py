"""The mixtures benchmark compares equal problems, and its statements follow from its numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import mixtures
from benchmarks.__main__ import main
from benchmarks.mixtures import QUICK, SUITES, Check, Scale, checks, write
from benchmarks.raw import fit_raw
from benchmarks.sgd import Observed, plain_sgd, sufficient
from sigmoid_attention.mixtures.rates.setting import RateSetting, box, draw_truth
from sigmoid_attention.mixtures.solver import chi2, minimise
from sigmoid_attention.mixtures.stochastic import StochasticRecipe

SETTING = RateSetting("sigmoid", "gelu", extra=0, replicates=3)
TINY = replace(QUICK, epochs=1, rounds=1)


def test_sums_over_rows_are_the_rows_to_least_squares():
    curve = [Observed.draw(SETTING, n, seed) for seed, n in enumerate((200, 500))]
    sums, theta = sufficient(curve), draw_truth(SETTING).theta_P.expand(3, -1)
    assert sums.n_B.tolist() == [200.0] * 3 + [500.0] * 3
    of_sums = chi2(SETTING.family, sums, theta.repeat(2, 1), 0.1)
    of_rows = [chi2(SETTING.family, summaries.samples(3), theta, 0.1) for summaries in curve]
    torch.testing.assert_close(of_sums, torch.cat(of_rows))
    # About sigma^2 a row, so that the truth and its noise are where they should be.
    np.testing.assert_allclose(of_sums / sums.n_B, 1, atol=0.35)


def test_plain_sgd_goes_downhill_and_stops_short():
    observed = Observed.draw(SETTING, 500, 0)
    data, truth = observed.samples(1), draw_truth(SETTING)
    begin = truth.theta_P + 0.5
    ends = [
        plain_sgd(
            SETTING.family, data.inputs_BQd[0], data.observations_BQ[0], begin,
            StochasticRecipe("sgd", 0.1, epochs=epochs, batch=50), seed=0,
        )
        for epochs in (1, 20)
    ]  # fmt: skip
    values = [chi2(SETTING.family, data, theta[None], 0.1).item() for theta in (begin, *ends)]
    best = minimise(SETTING.family, data, begin[None], sigma=0.1, box=box(SETTING, truth))
    assert values[0] > values[1] > values[2] > best.chi2_B.item() + 1
    assert ends[0].dtype == torch.float64


def test_a_fit_to_raw_rows_tells_what_it_took():
    fit = fit_raw("softmax", "gelu", 3000)
    assert fit["converged"] and fit["seconds"] > 0
    assert fit["bytes"] > 50 * 2**20
    # From the cells it is a short way.
    cells, rows = fit["iterations"]
    assert rows < cells


@pytest.mark.parametrize(
    ("at_least", "value", "met"), [(True, 2.0, True), (True, 1.0, False), (False, 2.0, False)]
)
def test_a_bound_has_a_side(at_least, value, met):
    assert Check("suite", "name", value, "x", 1.5, at_least).met == met


def test_the_gain_is_compared_over_all_fits():
    check = mixtures._gain("suite", "a family", mixtures_of((11.0, 12.5), (13.0, 14.5)), 1.0)
    assert check.value == 0.75
    assert check.values == (-0.25, 1.75)
    assert "12.75 ± 0.72 of 12 parameters, 4 fits" in check.said


def mixtures_of(*gains: tuple[float, ...]):
    curve = mixtures.measure(replace(SETTING, sizes=(100,), replicates=2))
    return [replace(curve, gain=np.array([gain]), free=12) for gain in gains]


def test_a_quick_run_writes_every_check_of_a_suite(tmp_path, capsys):
    out = tmp_path / "mixtures.jsonl"
    assert main(["mixtures", "--quick", "--only", "curve,wide", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["suite"] for line in lines] == ["curve"] * 6 + ["wide"] * 2
    assert len({line["name"] for line in lines}) == len(lines)
    for line in lines:
        assert line["stamp"]["machine"]["cores"] >= 1 and line["stamp"]["versions"]["torch"]
        assert line["met"] == (line["value"] <= line["bound"])
    assert "CPU s" in capsys.readouterr().out
    # The same again takes the place of what was there.
    assert main(["mixtures", "--quick", "--only", "wide", "--out", str(out)]) == 0
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == [
        line["name"] for line in lines
    ]


def test_sgd_is_judged_by_its_distance_from_the_optimum():
    times, above = list(mixtures.sgd(TINY))[:2]
    assert times.at_least and "our own SGD" in times.said and times.value > 0
    assert above.value > 1 and above.unit == "chi2"
    assert len(above.values) == len(TINY.sizes)


def test_two_workers_are_compared_with_one(monkeypatch):
    monkeypatch.setattr(mixtures, "usable_cores", lambda: 1)
    assert list(mixtures.cores(TINY)) == []


def test_an_unmet_check_is_an_exit_code(monkeypatch, capsys):
    def suite(scale: Scale):
        yield Check("curve", "too slow", 3.0, "CPU s", 1.0)

    monkeypatch.setitem(SUITES, "curve", suite)
    assert main(["mixtures", "--only", "curve"]) == 1
    assert "not met" in capsys.readouterr().out
    assert main(["mixtures", "--only", "curve", "--quick"]) == 0


def test_bad_input_gives_one_sentence(capsys):
    assert main(["mixtures", "--only", "speed"]) == 2
    message = capsys.readouterr().err
    assert "--only must be of curve, sgd, raw, wide, cores, got speed" in message
    assert message.count("\n") == 1


def test_threads_are_given_back(monkeypatch):
    monkeypatch.setitem(SUITES, "curve", lambda scale: iter([Check("a", "b", 1.0, "x", 1.0)]))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    results = list(checks(("curve",), TINY))
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2
    assert results[0].stamp["machine"]["threads"] == 1


def test_earlier_measurements_stay(tmp_path):
    path = tmp_path / "a.jsonl"
    check = Check("s", "one", 1.0, "x", 1.0)
    write(path, [check, replace(check, name="two")])
    write(path, [replace(check, value=5.0)])
    values = {
        line["name"]: line["value"] for line in map(json.loads, path.read_text().splitlines())
    }
    assert values == {"one": 5.0, "two": 1.0}
