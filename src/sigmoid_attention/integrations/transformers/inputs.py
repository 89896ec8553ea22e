"""A small batch that reaches every attention module of a model, made from its config."""

import inspect
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

_TOKENS = 8
_FRAMES = 8


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tokens, pixels or sound, whichever the model's ``forward`` has arguments for.

    Raises:
        ValueError: none of them, or their sizes cannot be told; the sentence asks for ``inputs``.
    """
    taken = inspect.signature(model.forward).parameters
    try:
        made = _made(model, taken)
    except AttributeError as error:
        raise ValueError(
            f"inputs: cannot make a batch for {type(model).__name__} ({error}); give one"
        ) from error
    if not made:
        raise ValueError(
            f"inputs: cannot make a batch for {type(model).__name__}, whose forward takes "
            f"{', '.join(taken)}; give one"
        )
    return {name: _moved(tensor, model) for name, tensor in made.items()}


def encoder_states(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a decoder's cross-attention looks at, if its ``forward`` has an argument for it."""
    if "encoder_hidden_states" not in inspect.signature(model.forward).parameters:
        return {}
    names = ("cross_attention_hidden_size", "encoder_hidden_size", "hidden_size")
    width = next((getattr(model.config, n) for n in names if getattr(model.config, n, None)), None)
    if width is None:
        return {}
    return {"encoder_hidden_states": _moved(torch.zeros(1, _TOKENS, width), model)}


def _made(model: PreTrainedModel, taken: Collection[str]) -> dict[str, Tensor]:
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
    return made


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
