"""A small batch that reaches every attention module of a model, made from its config."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

_TOKENS = 8
_FRAMES = 8


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tokens, pixels or sound, whichever the model's ``forward`` has arguments for.

    Raises:
        ValueError: none of them; the sentence asks for ``inputs``.
    """
    taken = inspect.signature(model.forward).parameters
    config = model.config
    made: dict[str, Any] = {}
    if "input_ids" in taken and model.main_input_name != "pixel_values":
        made["input_ids"] = torch.arange(_TOKENS)[None]
    if "pixel_values" in taken:
        vision = getattr(config, "vision_config", config)
        if hasattr(vision, "image_size"):
            made["pixel_values"] = torch.zeros(1, vision.num_channels, *_pair(vision.image_size))
    if "input_features" in taken and hasattr(config, "max_source_positions"):
        # Whisper's convolutions halve the frames, and its encoder takes no other length.
        made["input_features"] = torch.zeros(
            1, config.num_mel_bins, 2 * config.max_source_positions
        )
    if "input_values" in taken:
        made["input_values"] = _sound(config)
    if "decoder_input_ids" in taken:
        made["decoder_input_ids"] = torch.arange(_TOKENS)[None]
    if not made:
        raise ValueError(
            f"inputs: cannot make a batch for {type(model).__name__}, whose forward takes "
            f"{', '.join(taken)}; give one"
        )
    return {name: _moved(tensor, model) for name, tensor in made.items()}


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _sound(config: PreTrainedConfig) -> Tensor:
    """Enough samples for some frames behind the convolutions, or a spectrogram."""
    if hasattr(config, "conv_stride"):
        samples = _FRAMES * math.prod(config.conv_stride) + sum(config.conv_kernel)
        return torch.zeros(1, samples)
    return torch.zeros(1, config.max_length, config.num_mel_bins)


def _moved(tensor: Tensor, model: PreTrainedModel) -> Tensor:
    dtype = model.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=model.device, dtype=dtype)
