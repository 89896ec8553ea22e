"""Finds what holds a learned bias back: a narrow dtype, or the optimiser's decay."""

from collections.abc import Iterator

import torch
from torch import nn

from sigmoid_attention.diagnosis.finding import Finding

# The names that the library's layers and conversions give to the numbers of a learned bias.
ENDINGS = (".bias.value", ".bias.offset", ".sigmoid_bias", ".sigmoid_bias.offset")
NARROW = (torch.bfloat16, torch.float16)


def biases(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The learned attention biases of a model, by name: one number a head."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and f".{name}".endswith(ENDINGS):
            yield name, parameter


def held_back(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[Finding]:
    """The faults of learned biases; decay is only seen where the optimiser is given."""
    decays = {
        id(parameter): (group["weight_decay"], group["lr"])
        for group in (optimizer.param_groups if optimizer else ())
        for parameter in group["params"]
        if group.get("weight_decay")
    }
    for name, parameter in biases(model):
        if parameter.dtype in NARROW:
            size = parameter.detach().abs().max().float()
            step = torch.finfo(parameter.dtype).eps * 2 ** size.clamp(min=1e-9).log2().floor()
            yield Finding(
                "narrow bias",
                name,
                f"it has the dtype {str(parameter.dtype).removeprefix('torch.')}: near "
                f"{size:.1f} its numbers are {step:.2g} apart, and smaller steps of training are "
                f"lost.",
                "Keep it in float32; the library's layers do so when the model is cast with .to().",
            )
        if id(parameter) in decays:
            decay, lr = decays[id(parameter)]
            yield Finding(
                "decayed bias",
                name,
                f"the optimiser decays it (weight_decay {decay:g} at the rate {lr:g}), which "
                f"pulls it from {parameter.detach().mean():.1f} towards 0 and so raises the mass.",
                "Put it into a group with weight_decay=0, as decoupled_adamw does with vectors.",
            )
