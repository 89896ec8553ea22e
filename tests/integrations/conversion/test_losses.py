"""Both losses against their formulas in float64."""

import torch

from sigmoid_attention.integrations.conversion import (
    logit_divergence,
    next_token_loss,
    relative_error,
)


def test_each_token_counts_alike():
    torch.manual_seed(0)
    parent = torch.randn(2, 5, 7, dtype=torch.float64)
    parent[0, 0] *= 1e3
    student = parent + 0.1 * torch.randn_like(parent)
    by_hand = [
        ((student[b, n] - parent[b, n]) ** 2).sum() / (parent[b, n] ** 2).sum()
        for b in range(2)
        for n in range(5)
    ]
    torch.testing.assert_close(
        relative_error(student, parent).double(), torch.stack(by_hand).mean(), rtol=1e-5, atol=0
    )


def test_a_token_is_predicted_from_those_before_it():
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 4, 11, dtype=torch.float64), torch.randint(11, (2, 4))
    p = torch.softmax(logits, -1)
    by_hand = [-p[b, n, ids[b, n + 1]].log() for b in range(2) for n in range(3)]
    torch.testing.assert_close(
        next_token_loss(logits, ids).double(), torch.stack(by_hand).mean(), rtol=1e-5, atol=0
    )


def test_divergence_from_the_parent_at_a_temperature():
    torch.manual_seed(0)
    student, parent = torch.randn(2, 2, 3, 11, dtype=torch.float64).unbind(0)
    p, q = (torch.softmax(x / 2.5, -1) for x in (parent, student))
    by_hand = 2.5**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(
        logit_divergence(student, parent, 2.5).double(), by_hand, rtol=1e-5, atol=0
    )
