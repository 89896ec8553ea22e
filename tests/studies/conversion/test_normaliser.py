"""Predictors of a log-sum-exp: exact where it is linear, and the table of a tiny model."""

import pytest
import torch

from sigmoid_attention.studies.conversion import normaliser
from tests.support.conversion.checkpoints import checkpoint, text


def test_what_is_linear_is_predicted_exactly(monkeypatch):
    monkeypatch.setattr(normaliser, "RIDGE", 0.0)
    torch.manual_seed(0)
    predictor = normaliser.Predictor(("log m", "query"))
    wanted_H1D = torch.randn(3, 1, 4, dtype=torch.float64)

    def rows(batch):
        features = {
            "log m": torch.rand(batch, 3, 50, 1, dtype=torch.float64),
            "query": torch.randn(batch, 3, 50, 4),
            "input": torch.randn(batch, 3, 50, 9),
        }
        linear = (features["query"] * wanted_H1D).sum(-1, keepdim=True)
        return features, 0.5 + 2 * features["log m"] + linear

    for _ in range(3):
        predictor.watch(*rows(2))
    assert predictor.error(*rows(1)).abs().max() < 1e-9
    assert predictor.error(*rows(1)).shape == (3, 50)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_gets_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(normaliser, "FITTED", 24)
    monkeypatch.setattr(normaliser, "BANDS", (0, 24, 60))
    model = checkpoint(tmp_path / "model", "llama")
    normaliser.main([str(model), "--data", str(text(tmp_path)), "--sequences", "1"])
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| | 0 to 23 | 24 to 59 |" and rule == "|---|---|---|"
    by_features = {
        row.split(" | ")[0]: [float(x) for x in row.strip("| ").split(" | ")[1:]] for row in rows
    }
    assert list(by_features) == [f"| {name}" for name in normaliser.FEATURES]
    # Of a model that was never trained keys are nearly neutral: their number says most of it.
    assert by_features["| and log m"][0] < by_features["| a number"][0] / 2
    assert by_features["| and log m"][1] < by_features["| a number"][1] / 2
