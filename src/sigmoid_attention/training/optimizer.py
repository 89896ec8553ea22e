"""AdamW with a weight decay independent of the learning rate, and the learning-rate schedule."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import nn

from sigmoid_attention.nn.sizes import instance, switch


@dataclass(frozen=True)
class TrainConfig:
    """The hyperparameters of training: everything except the model and the data.

    `weight_decay` is the share that one step at the peak learning rate subtracts from a matrix; it
    is not multiplied by the learning rate (see `decoupled_adamw`). `bf16` computes the forward pass
    under autocast; parameters and optimiser state stay in float32. A resumed run may change only
    `checkpoint_every`, `device` and, upwards, `steps`.

    Defaults follow the language models of arXiv 2409.04431 (AdamW betas 0.9/0.95, eps 1e-8,
    decay 1e-4, clipping at 1, cosine to a tenth), with a learning rate for much smaller models.

    Raises:
        TypeError, ValueError: a value has a wrong type, or is out of range; names it.

    Example:
        >>> TrainConfig(steps=1000, warmup_steps=50).min_lr_ratio
        0.1
    """

    steps: int
    lr: float = 3e-3
    min_lr_ratio: float = 0.1
    warmup_steps: int = 50
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float = 1.0
    bf16: bool = False
    seed: int = 0
    checkpoint_every: int = 200
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "warmup_steps", "seed", "checkpoint_every"):
            instance(name, getattr(self, name), Integral, "a whole number")
        for name in ("lr", "min_lr_ratio", "weight_decay", "eps", "clip_norm"):
            instance(name, getattr(self, name), Real, "a number")
        instance("betas", self.betas, tuple | list, "two numbers in [0, 1)")
        for beta in self.betas:
            instance("betas", beta, Real, "two numbers in [0, 1)")
        switch("bf16", self.bf16)
        conditions = {
            "steps": (1 <= self.steps <= 2**53, "at least 1 and at most 2**53"),
            # In this range Adam's updates and weight_decay / lr stay within float32.
            "lr": (1e-30 <= self.lr <= 1e30, "positive, from 1e-30 to 1e30"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "between 0 and 1"),
            "warmup_steps": (0 <= self.warmup_steps <= 2**53, "at least 0 and at most 2**53"),
            "weight_decay": (0 <= self.weight_decay < 1, "at least 0 and below 1"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            "eps": (self.eps > 0, "positive"),
            "clip_norm": (self.clip_norm > 0, "positive (math.inf never clips)"),
            "seed": (-(2**63) <= self.seed < 2**63, "a whole number of 64 bits"),
            "checkpoint_every": (self.checkpoint_every >= 1, "at least 1"),
        }
        for name, (holds, wanted) in conditions.items():
            if not holds:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")


def schedule(step: int, config: TrainConfig) -> float:
    """The factor on the peak learning rate at `step` (from 0): linear warm-up, then cosine decay.

    It is 1 at the last step of the warm-up and `min_lr_ratio` at the last step of the run.

    Example:
        >>> config = TrainConfig(steps=10, warmup_steps=4)
        >>> [round(schedule(step, config), 2) for step in (0, 3, 9)]
        [0.25, 1.0, 0.1]
    """
    done = step + 1
    if done < config.warmup_steps:
        return done / config.warmup_steps
    progress = (done - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine


def decoupled_adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay follows the schedule but is not multiplied by the learning rate.

        parameter <- parameter - s(step) * (lr * adam_update + weight_decay * parameter)

    with s the `schedule` in [0, 1]: the decay of Loshchilov & Hutter 2019 (arXiv 1711.05101,
    algorithm 2), which the models of arXiv 2409.04431 were trained with. torch's own AdamW
    multiplies the decay by the learning rate as well, so that a sweep over learning rates sweeps
    the decay too; here it gets weight_decay / lr, which cancels that factor.

    Only parameters with two or more dimensions decay (projections, embeddings). Vectors do not:
    decaying a norm's gain or a learned attention bias would not make the model simpler, but
    would undo the initialisation -log n that keeps sigmoid attention in range.

    Example:
        >>> optimizer = decoupled_adamw(nn.Linear(2, 3), TrainConfig(steps=1, lr=0.01))
        >>> [round(group["weight_decay"], 6) for group in optimizer.param_groups]
        [0.01, 0.0]
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in trained if parameter.ndim >= 2],
            "weight_decay": config.weight_decay / config.lr,
        },
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
