"""The needle is in the text, its question at the end, and correct answers are counted."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sigmoid_attention.studies.conversion import needle


class Letters:
    """A token a character, and what a haystack needs of a parent."""

    tokenizer = staticmethod(lambda text, **_: {"input_ids": [ord(letter) for letter in text]})


HAY = torch.arange(1000, 5000)


def read(ids):
    return "".join(chr(number) if number < 1000 else "." for number in ids.tolist())


def test_each_text_holds_its_number_once_and_asks_for_it():
    texts = needle.haystacks(Letters, HAY, length=300, count=8)
    places = []
    for ids, answer in texts:
        assert ids.shape == (1, 300)
        number = read(answer).strip()
        assert len(number) == 5
        whole = read(ids[0])
        hidden = whole.index(f"is {number}.")
        places.append(hidden)
        question = whole.rindex(" The secret")
        assert whole[question:] == whole[whole.index(" The secret") :][: len(whole) - question]
        assert hidden < question and whole.endswith(read(answer)[:-1])
    assert places == sorted(places) and places[0] < 60 and places[-1] > 180
    again = needle.haystacks(Letters, HAY, length=300, count=8)
    assert all(a.equal(b) for (a, _), (b, _) in zip(texts, again, strict=True))


def test_a_short_text_is_refused():
    with pytest.raises(ValueError, match="a needle is sought among 5000"):
        needle.haystacks(Letters, HAY, length=5000, count=1)


class Sure(nn.Module):
    """Knows the answers, but is wrong about the last token of every second."""

    def __init__(self, texts):
        super().__init__()
        self.answers = {tuple(ids[0].tolist()): (n, a) for n, (ids, a) in enumerate(texts)}
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, ids, logits_to_keep, **_):
        number, answer = self.answers[tuple(ids[0].tolist())]
        told = answer.clone()
        if number % 2:
            told[-1] += 1
        logits = torch.zeros(1, len(answer), 200)
        logits[0, torch.arange(len(answer)), told] = 9.0
        assert logits_to_keep == len(answer)
        return SimpleNamespace(logits=logits)


def test_an_answer_counts_when_every_token_is_right():
    texts = needle.haystacks(Letters, HAY, length=300, count=8)
    share, loss = needle.needle_scores(Sure(texts), texts)
    assert share == 0.5 and 0 < loss < 9
