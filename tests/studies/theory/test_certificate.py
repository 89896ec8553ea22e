"""The certificate of a trained decoder, from the library and from the command line."""

import json

import pytest
import torch

from sigmoid_attention.cli import main
from sigmoid_attention.nn import DecoderLM, ModelConfig
from sigmoid_attention.studies.theory.certificate import certify, embedded, save
from sigmoid_attention.theory.regularity import Ball, jacobian_norm


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ModelConfig.recipe(
        "recommended",
        vocab_size=257,
        dim=8,
        layers=2,
        num_heads=2,
        max_seq_len=16,
        position="rope",
    )
    return DecoderLM(config).eval()


def test_what_is_measured_is_the_norm_and_lies_below_both_bounds(model, tmp_path):
    tokens = torch.arange(5)[None]
    certificate = certify(model, tokens, Ball(4.0, lower=1.0))
    assert [branch.at.name for branch in certificate.branches] == [
        "0.attention", "0.feed_forward", "1.attention", "1.feed_forward",
    ]  # fmt: skip
    x = embedded(model, tokens)

    def first(x):
        block = model.blocks[0]
        return block.attention_residual(x[None], block.attention)[0]

    assert certificate.branches[0].measured == pytest.approx(
        jacobian_norm(first, x).value, rel=0.02
    )
    for branch in certificate.branches:
        assert branch.measured <= branch.at.jacobian <= branch.within.jacobian
    assert certificate.measured <= certificate.at <= certificate.within
    data, figure = save(certificate, tmp_path / "new")
    described = json.loads(data.read_text())
    assert described["product_at"] == pytest.approx(certificate.at)
    assert described["branches"][0]["measured"] == certificate.branches[0].measured
    assert "bound at the text" in figure.read_text()


@pytest.mark.parametrize(
    "options, message",
    (
        (["--radius", "0"], "radius must be positive and finite, got 0.0"),
        (["--radius", "1", "--lower", "2"], "lower must lie between 0 and the radius, got 2.0"),
        (["--radius", "1", "--tokens", "0"], "tokens must be 1 or more, got 0"),
        (["--radius", "1"], "holds no trained model"),
    ),
)
def test_bad_input_gives_one_sentence(options, message, tmp_path, capsys):
    assert main(["regularity", str(tmp_path), *options]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1
