"""A small batch, made from the config, that reaches every attention module of a model."""

import inspect
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

_TOKENS = 8
_FRAMES = 8


def dummy_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Tokens, pixels or audio, according to the arguments of the model's ``forward``.

    Raises:
        ValueError: the model takes none of them, or their sizes are unknown; the sentence asks for
            ``inputs``.
    """
    taken = inspect.signature(model.forward).parameters
    try:
        made = _dummy_input(model, taken)
    except AttributeError as error:
        raise ValueError(
            f"inputs: cannot make a batch for {type(model).__name__} ({error}); give one"
        ) from error
    if not made:
        raise ValueError(
            f"inputs: cannot make a batch for {type(model).__name__}, whose forward takes "
            f"{', '.join(taken)}; give one"
        )
    return {
        name: _to_model(value, model) if isinstance(value, Tensor) else value
        for name, value in made.items()
    }


def encoder_states(model: PreTrainedModel) -> dict[str, Any]:
    """Encoder states for the cross-attention of a decoder whose ``forward`` accepts them."""
    taken = inspect.signature(model.forward).parameters
    widths = ("cross_attention_hidden_size", "encoder_hidden_size", "hidden_size")
    width = next(filter(None, (getattr(model.config, name, None) for name in widths)), None)
    if not isinstance(width, int):
        return {}
    states = _to_model(torch.zeros(1, _TOKENS, width), model)
    if "encoder_hidden_states" in taken:
        return {"encoder_hidden_states": states}
    return {"encoder_outputs": (states,)} if "encoder_outputs" in taken else {}


def _dummy_input(model: PreTrainedModel, taken: Collection[str]) -> dict[str, Any]:
    config = model.config
    made: dict[str, Any] = {}
    if "input_ids" in taken and model.main_input_name != "pixel_values":
        made["input_ids"] = torch.arange(_TOKENS)[None]
    if "pixel_values" in taken:
        vision = _part(config, "vision_config", "encoder")
        if hasattr(vision, "image_size"):
            channels = getattr(vision, "num_channels", 3)
            made["pixel_values"] = torch.zeros(1, channels, *_pair(vision.image_size))
    if "input_features" in taken and hasattr(config, "max_source_positions"):
        # Whisper's convolutions halve the frames, and its encoder takes no other length.
        made["input_features"] = torch.zeros(
            1, config.num_mel_bins, 2 * config.max_source_positions
        )
    if "input_values" in taken:
        made["input_values"] = _sound(_part(config, "encoder"))
    if "decoder_input_ids" in taken:
        made["decoder_input_ids"] = torch.arange(_TOKENS)[None]
    if made and "use_cache" in taken:
        made["use_cache"] = False
    return made


def _part(config: PreTrainedConfig, *names: str) -> Any:
    """The nested config with one of these names, or the config itself."""
    found = (getattr(config, name, None) for name in names)
    return next((each for each in found if isinstance(each, PreTrainedConfig)), config)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _sound(config: PreTrainedConfig) -> Tensor:
    """Samples for a few frames after the convolutions, or a spectrogram."""
    if hasattr(config, "conv_stride"):
        samples = _FRAMES * math.prod(config.conv_stride) + sum(config.conv_kernel)
        return torch.zeros(1, samples)
    return torch.zeros(1, config.max_length, config.num_mel_bins)


def _to_model(tensor: Tensor, model: PreTrainedModel) -> Tensor:
    dtype = model.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=model.device, dtype=dtype)
