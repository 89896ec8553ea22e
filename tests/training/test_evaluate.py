"""Bits per byte and accuracy against their definitions."""

import math

import pytest
import torch
from torch import nn

from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import BPETokenizer, ByteTokenizer
from sigmoid_attention.training.evaluate import accuracy, bits_per_byte
from sigmoid_attention.training.tasks import Copying, MultiQueryRecall
from sigmoid_attention.training.trainer import TrainConfig, train
from tests.support.training.runs import tiny_model

DOCUMENTS = [Document("a", b"the first of the texts, "), Document("b", b"and the other one")]
BPE = BPETokenizer.train([document.text for document in DOCUMENTS], vocab_size=270)


def uniform(vocab_size):
    return nn.Embedding.from_pretrained(torch.zeros(vocab_size, vocab_size))


@pytest.mark.parametrize("seq_len", [1, 7, 16, 42])
def test_a_uniform_model_needs_the_log_of_the_vocabulary(seq_len):
    value = bits_per_byte(uniform(257), ByteTokenizer(), DOCUMENTS, seq_len)
    assert value == pytest.approx(math.log2(257), rel=1e-6)


def test_bits_are_per_byte_for_all_tokenizers():
    text = Document("a", b"the texts of the texts of the texts")
    ids = BPE.encode(text.text)
    scored = ids[1:]
    size = sum(len(BPE.decode([number])) for number in scored)
    assert len(scored) < size, "this vocabulary has tokens of several bytes"
    value = bits_per_byte(uniform(BPE.vocab_size), BPE, [text], 4)
    assert value == pytest.approx(math.log2(BPE.vocab_size) * len(scored) / size, rel=1e-6)


def test_a_model_is_scored_as_its_definition_says():
    """Window after window, token after token, with the context that the window has."""
    model = tiny_model().eval()
    tokens = [*DOCUMENTS[0].text, 256, *DOCUMENTS[1].text, 256]
    nats, size = 0.0, 0
    for start in range(0, len(tokens) - 1, 9):
        window = tokens[start : start + 10]
        for i in range(1, len(window)):
            if window[i] != 256:
                with torch.no_grad():
                    logits = model(torch.tensor([window[:i]]))[0, -1].double()
                nats -= logits.log_softmax(-1)[window[i]].item()
                size += 1
    value = bits_per_byte(model, ByteTokenizer(), DOCUMENTS, 9)
    assert value == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_it_repeats_exactly_and_leaves_the_mode_alone():
    model = tiny_model()
    values = {bits_per_byte(model, ByteTokenizer(), DOCUMENTS, 5) for _ in range(3)}
    assert len(values) == 1 and model.training


class Counting(nn.Module):
    """Uniform, and remembers how many tokens it was asked about."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, tokens):
        self.asked += tokens.numel()
        return torch.zeros(*tokens.shape, 257)


@pytest.mark.parametrize("seq_len", [3, 11])
def test_max_bytes_takes_the_head_of_every_document(seq_len):
    documents = [Document(str(i), b"x" * 100) for i in range(5)]
    model = Counting()
    bits_per_byte(model, ByteTokenizer(), documents, seq_len, max_bytes=50)
    assert model.asked == 5 * 10 + 5 - 1, "all of the stream but its last token, at any length"


@pytest.mark.parametrize("seq_len", [0, 43], ids=["zero", "longer than the text"])
def test_a_length_that_cannot_be_is_named(seq_len):
    says = "seq_len must be at least 1" if seq_len == 0 else "held-out text has 43 tokens"
    with pytest.raises(ValueError, match=says):
        bits_per_byte(uniform(257), ByteTokenizer(), DOCUMENTS, seq_len)


def test_without_text_there_is_nothing_to_score():
    with pytest.raises(ValueError, match="held-out text has 0 tokens"):
        bits_per_byte(uniform(257), ByteTokenizer(), [], 4)
    with pytest.raises(ValueError, match="no byte to score"):
        bits_per_byte(uniform(257), ByteTokenizer(), DOCUMENTS, 1, max_bytes=0)


class Says(nn.Module):
    """Predicts the token that `rule` makes of each input row."""

    def __init__(self, rule, vocab_size):
        super().__init__()
        self.rule, self.vocab_size = rule, vocab_size
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        return nn.functional.one_hot(self.rule(tokens), self.vocab_size).float()


def test_a_model_that_follows_the_rule_is_always_right():
    task = Copying(12, 3, vocab_size=7, seed=0)
    knows = Says(lambda tokens: tokens.roll(6, 1), 7)
    assert accuracy(knows, task.heldout(2)) == 1.0


def test_unequal_batches_count_by_position():
    same = Says(lambda tokens: tokens, 9)
    batches = [
        (torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3]])),
        (torch.tensor([[4]]), torch.tensor([[5]])),
        (torch.tensor([[6, 7]]), torch.tensor([[-100, -100]])),
    ]
    assert accuracy(same, batches) == 0.75


def test_the_mode_of_the_model_is_left_alone():
    model = tiny_model()
    task = MultiQueryRecall(15, 4, pairs=4, vocab_size=17, seed=0)
    values = {accuracy(model, task.heldout(2)) for _ in range(3)}
    assert len(values) == 1 and model.training, "evaluated without dropout, then back to training"


def test_a_tiny_model_learns_to_copy():
    task = Copying(4, 16, vocab_size=6, seed=0)
    model = tiny_model(dropout_p=0.0, vocab_size=6)
    before = accuracy(model, task.heldout(2))
    train(model, task, TrainConfig(steps=120, lr=1e-2, warmup_steps=20), progress=False)
    assert before < 0.5 < 0.9 < accuracy(model, task.heldout(2))
