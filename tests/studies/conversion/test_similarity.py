"""The correlations are those of the model's own cosines, for every padding."""

import pytest
import torch
from scipy.stats import spearmanr

from sigmoid_attention.studies.conversion.parents import load_parent
from sigmoid_attention.studies.conversion.similarity import Pairs, correlation
from tests.support.conversion.checkpoints import checkpoint

TEXTS = ["w1 w2 w3", "w1 w2 w3 w4 w5 w6 w7 w8", "w40 w41", "w9", "w1 w2 w9 w50 w51"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return load_parent(str(checkpoint(tmp_path_factory.mktemp("bert"), "bert")))


def cosine(parent, first, second):
    means = []
    for text in (first, second):
        ids = torch.tensor([parent.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            means.append(parent.model(ids).last_hidden_state.double().mean(1))
    return float(torch.cosine_similarity(*means))


def test_it_is_spearmans_of_the_cosines_of_means(parent):
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    scores = [0.3, 0.9, 0.1, 0.7, 0.2, 0.8, 0.4, 0.6, 0.5, 0.0]
    cosines = [cosine(parent, TEXTS[i], TEXTS[j]) for i, j in pairs]
    expected = float(spearmanr(cosines, scores)[0])
    outcome = correlation(parent.model, parent.tokenizer, Pairs("made", TEXTS, pairs, scores))
    assert outcome == pytest.approx(expected, abs=1e-6) and abs(expected) < 0.99
    exact = Pairs("own", TEXTS, pairs, cosines)
    assert correlation(parent.model, parent.tokenizer, exact) == pytest.approx(1.0)
