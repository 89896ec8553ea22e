"""A tiny run that every trainer test shares: model, data and the comparison of two outcomes."""

import dataclasses
import hashlib

import torch

from sigmoid_attention.nn import PRESETS, DecoderLM
from sigmoid_attention.training.data.batches import TextBatches
from sigmoid_attention.training.trainer import TrainConfig


def tiny_model(*, seed=0, **changes):
    """The tiny preset with dropout, so that a run depends on torch's random generator."""
    torch.manual_seed(seed)
    return DecoderLM(dataclasses.replace(PRESETS["tiny"], **{"dropout_p": 0.1, **changes}))


def tiny_text(seq_len=7, batch_size=2, seed=3):
    tokens = torch.randint(257, (211,), generator=torch.Generator().manual_seed(1))
    return TextBatches(tokens.int(), seq_len, batch_size, seed)


def tiny_config(**changes):
    defaults = {"steps": 5, "warmup_steps": 2, "checkpoint_every": 2, "seed": 5}
    return TrainConfig(**{**defaults, **changes})


def digest(model):
    """Changes with any bit of any parameter."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        total.update(parameter.detach().numpy().tobytes())
    return total.hexdigest()
