"""Accuracy counts scored positions only, over all batches together."""

import torch
from torch import nn

from sigmoid_attention.training.tasks import Copying, MultiQueryRecall, accuracy
from sigmoid_attention.training.trainer import TrainConfig, train
from tests.training.runs import tiny_model


class Says(nn.Module):
    """Predicts the token that `rule` makes of each input row."""

    def __init__(self, rule, vocab_size):
        super().__init__()
        self.rule, self.vocab_size = rule, vocab_size
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens):
        return nn.functional.one_hot(self.rule(tokens), self.vocab_size).float()


def test_whoever_knows_the_rule_is_right_everywhere():
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
