"""Values of the learning rate schedule, and a weight decay independent of the learning rate."""

import math

import pytest
import torch
from torch import nn

from sigmoid_attention.training.optimizer import TrainConfig, decoupled_adamw, schedule


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (11, 1), (7, 0), (5, 5), (3, 9)])
def test_schedule_landmarks(steps, warmup):
    config = TrainConfig(steps=steps, warmup_steps=warmup, min_lr_ratio=0.2)
    factors = [schedule(step, config) for step in range(steps)]
    rising, falling = factors[: max(warmup, 1)], factors[max(warmup - 1, 0) :]
    assert all(0 < factor <= 1 for factor in factors)
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    if 0 < warmup <= steps:
        assert factors[warmup - 1] == pytest.approx(1)
        assert factors[0] == pytest.approx(1 / warmup)
    if warmup < steps:
        assert factors[-1] == pytest.approx(0.2)


def test_the_cosine_is_half_way_in_the_middle():
    config = TrainConfig(steps=110, warmup_steps=10, min_lr_ratio=0.0)
    assert schedule(59, config) == pytest.approx(0.5)


@pytest.mark.parametrize("lr", [1e-4, 0.3])
def test_one_step_is_the_formula(lr):
    """parameter - s (lr m / (sqrt(v) + eps) + wd parameter), bias-corrected, by hand in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    config = TrainConfig(steps=9, lr=lr, weight_decay=0.05, warmup_steps=0)
    optimizer = decoupled_adamw(layer, config)
    first, second = {}, {}
    for step in range(3):
        factor = schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        expected = {}
        optimizer.zero_grad()
        layer(torch.randn(4, 3).double()).square().sum().backward()
        for name, parameter in layer.named_parameters():
            gradient = parameter.grad
            first[name] = 0.9 * first.get(name, 0) + 0.1 * gradient
            second[name] = 0.95 * second.get(name, 0) + 0.05 * gradient**2
            m, v = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
            decay = 0.05 if name == "weight" else 0.0
            update = lr * m / (v.sqrt() + 1e-8) + decay * parameter
            expected[name] = (parameter - factor * update).detach()
        optimizer.step()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = decoupled_adamw(model, TrainConfig(steps=1)).param_groups
    assert sum(len(group["params"]) for group in groups) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"lr": math.inf},
        {"lr": math.nan},
        {"min_lr_ratio": 1.5},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
        {"clip_norm": 0.0},
        {"checkpoint_every": 0},
    ],
    ids=lambda wrong: "-".join(map(str, *wrong.items())),
)
def test_a_value_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} must be .*got "):
        TrainConfig(**{"steps": 5, **wrong})
