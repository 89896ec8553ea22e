"""The checks of every architecture. Each takes the name of an architecture and asserts."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel, StaticCache

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead, attention_modules, convert
from tests.support.transformers import oracle
from tests.support.transformers.architectures import TOKENS, Architecture

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def converted(architecture: Architecture, **options: Any) -> PreTrainedModel:
    """A converted tiny model with different numbers for every head."""
    model = convert(architecture.build(), **{"bias": PerHead(NegLogLength(8)), **options})
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sigmoid_bias_centring" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=random) + 0.5)
            elif "sigmoid_bias" in name:
                parameter.add_(torch.randn(parameter.shape, generator=random))
    return model


def answer(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """What the model says, as one tensor."""
    out = model(**batch)
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if name in out:
            return out[name]
    raise KeyError(list(out))


def reached(architecture: Architecture) -> None:
    """Every attention module has its bias, and as many as the model was built with."""
    model = converted(architecture)
    assert len(attention_modules(model)) == architecture.modules


def definition(architecture: Architecture, **options: Any) -> None:
    """The output is that of sigmoid attention written in double precision."""
    parent, model = architecture.build(), converted(architecture, **options)
    other = oracle.twin(parent, model)
    with torch.no_grad():
        for batch in batches(architecture):
            torch.testing.assert_close(answer(model, batch), answer(other, batch), **TOLERANCE)


def batches(architecture: Architecture) -> list[dict[str, Tensor]]:
    """A batch without padding, and one with where the model takes a mask."""
    batch = architecture.batch()
    if "input_ids" not in batch:
        return [batch]
    mask = torch.ones_like(batch["input_ids"])
    mask[0, -3:] = 0
    return [batch, {**batch, "attention_mask": mask}]


def gradients(architecture: Architecture, **options: Any) -> None:
    """Gradients are those of the definition, and every bias has one."""
    parent, model = architecture.build(), converted(architecture, **options)
    other = oracle.twin(parent, model)
    for each in (model, other):
        out = answer(each, architecture.batch())
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
        (out * weights).sum().backward()
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if "sigmoid_" in name:
            assert parameter.grad is not None and parameter.grad.abs().min() > 0, name
        expected = theirs[name.replace("sigmoid_", "oracle_")].grad
        if expected is not None:
            scale = expected.abs().max() + 1e-6
            difference = (parameter.grad - expected).abs().max()
            assert difference < 1e-4 * scale, f"{name}: {difference} of {scale}"


def _decoder_inputs(
    model: PreTrainedModel, batch: dict[str, Tensor]
) -> tuple[dict[str, Any], str, Tensor]:
    """What stays the same from step to step, the name of the rest, and the rest."""
    name = "decoder_input_ids" if "decoder_input_ids" in batch else "input_ids"
    if name == "input_ids":
        return {}, name, batch[name]
    encoder = model.get_encoder()
    source = {key: batch[key] for key in batch if key != name}
    return {"encoder_outputs": encoder(**source)}, name, batch[name]


def _in_steps(
    model: PreTrainedModel, fixed: dict[str, Any], name: str, tokens: Tensor, cache: Any
) -> Tensor:
    """Logits of a first part of four tokens, of two more at once, and of one at a time."""
    seen, logits = 0, []
    for count in (4, 2, *[1] * (tokens.shape[1] - 6)):
        part = tokens[:, seen : seen + count]
        out = model(**fixed, **{name: part}, **with_cache(model, cache), use_cache=True)
        logits.append(out.logits)
        seen += count
    return torch.cat(logits, dim=1)


def with_cache(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """The cache under the name that ``forward`` has for it: since transformers 5.24 a new one."""
    taken = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in taken else "past_key_values": cache}


def _cached(
    architecture: Architecture, new_cache: Callable[[PreTrainedModel], Any], **options: Any
) -> None:
    _in_steps_as_whole(converted(architecture, **options), architecture, new_cache)


def _in_steps_as_whole(
    model: PreTrainedModel, architecture: Architecture, new_cache: Callable[[PreTrainedModel], Any]
) -> None:
    with torch.no_grad():
        fixed, name, tokens = _decoder_inputs(model, architecture.batch())
        whole = model(**fixed, **{name: tokens}, use_cache=False).logits
        parts = _in_steps(model, fixed, name, tokens, new_cache(model))
    torch.testing.assert_close(parts, whole, **TOLERANCE)


def _growing(model: PreTrainedModel) -> Any:
    config = model.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    if not model.config.is_encoder_decoder:
        return cache
    return EncoderDecoderCache(cache, DynamicCache(config=config))


def dynamic_cache(architecture: Architecture, **options: Any) -> None:
    """Token by token with a growing cache is the same as all at once."""
    _cached(architecture, _growing, **options)


def static_cache(architecture: Architecture, **options: Any) -> None:
    """And with a cache of fixed length, of which most is empty."""
    # transformers hides no empty key from cross-attention. It has a value of zero, but it would
    # count in a mean of keys. `generate` makes a cache of the encoder's length.
    exact = "centred_keys" in options and architecture.reads == "tokens to tokens"
    source = TOKENS if exact else 13

    def cache(model: PreTrainedModel) -> Any:
        config = model.config.get_text_config(decoder=True)
        new = StaticCache(config=config, max_cache_len=17)
        if not model.config.is_encoder_decoder:
            return new
        return EncoderDecoderCache(new, StaticCache(config=config, max_cache_len=source))

    _cached(architecture, cache, **options)


def padding(architecture: Architecture, **options: Any) -> None:
    """Padding right or, if tokens can be numbered, left changes nothing; nor silence at an end."""
    model = converted(architecture, **options)
    batch = architecture.batch()
    if architecture.reads == "sound":
        return _silence(model, batch["input_values"])
    tokens = batch["input_ids"][:, :7]
    filler = torch.full((tokens.shape[0], 3), 5)
    real, none = torch.ones_like(tokens), torch.zeros_like(filler)
    with torch.no_grad():
        plain = each_token(model, {**batch, "input_ids": tokens})
        for order in [1, -1] if architecture.pads_left else [1]:
            mask = torch.cat([real, none][::order], dim=1)
            padded = {
                **batch,
                "input_ids": torch.cat([tokens, filler][::order], dim=1),
                "attention_mask": mask,
            }
            if "position_ids" in inspect.signature(model.forward).parameters:
                padded["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
            padded_logits = each_token(model, padded)
            if padded_logits.shape[1] != plain.shape[1]:
                padded_logits = padded_logits[mask.bool()].unflatten(0, tokens.shape)
            torch.testing.assert_close(padded_logits, plain, **TOLERANCE)


def _silence(model: PreTrainedModel, sound_BN: Tensor) -> None:
    real, none = torch.ones_like(sound_BN), torch.zeros(len(sound_BN), 40)
    mask = torch.cat([real, none], dim=1).long()
    with torch.no_grad():
        plain = each_token(model, {"input_values": sound_BN})
        longer = {"input_values": torch.cat([sound_BN, none], dim=1)}
        logits = each_token(model, {**longer, "attention_mask": mask})[:, : plain.shape[1]]
        unmasked = each_token(model, longer)[:, : plain.shape[1]]
    torch.testing.assert_close(logits, plain, **TOLERANCE)
    assert (unmasked - plain).abs().max() > 0.01, "silence is not seen, so nothing was hidden"


def each_token(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """One vector for each token that the model reads or, as a decoder, writes."""
    out = model(**batch)
    return out.text_model_output.last_hidden_state if "text_model_output" in out else out[0]


def compiled(architecture: Architecture, **options: Any) -> None:
    """One graph without breaks gives the same."""
    _one_graph(converted(architecture, **options), architecture.batch())


def _one_graph(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    torch._dynamo.reset()
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(answer(whole, batch), answer(model, batch), **TOLERANCE)


def linear_bias(architecture: Architecture, folder: Path, **options: Any) -> None:
    """A bias from each token's input learns, and is the same in steps, one graph and reloaded."""
    model = converted(architecture, bias=PerHead(NegLogLength(8), linear=True), **options)
    batch = architecture.batch()
    answer(model, batch).sum().backward()
    assert all(module.sigmoid_bias.weight.grad.abs().max() > 0 for module in _attention(model))
    if architecture.decodes:
        _in_steps_as_whole(model, architecture, _growing)
    _one_graph(model, batch)
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(answer(again, batch), answer(model, batch), **TOLERANCE)
        for module in _attention(model):
            module.sigmoid_bias.weight.zero_()
        assert not torch.allclose(answer(again, batch), answer(model, batch), **TOLERANCE)


def _attention(model: PreTrainedModel) -> list[Any]:
    return list(attention_modules(model).values())


def reloaded(architecture: Architecture, folder: Path, **options: Any) -> None:
    """`from_pretrained` gives back every bias, norm and scale bit by bit, and the same output."""
    options |= {"layer_scale": 0.5, "norm": "hybrid"}
    model = converted(architecture, **options, qk_norm="rms" if architecture.qk_norm else None)
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    with torch.no_grad():
        # Products of matrices round by where they lie in memory, and files put weights anywhere.
        for parameter in again.parameters():
            parameter.data = parameter.data.clone()
        batch = architecture.batch()
        assert torch.equal(answer(model, batch), answer(again, batch))
    again.save_pretrained(folder / "again")
    ours, theirs = (_kept(at / "config.json") for at in (folder, folder / "again"))
    assert ours == theirs and len(ours) > 1


def _kept(file: Path) -> list[str]:
    """The lines of a config by which a converted checkpoint is known, in order."""
    names = ("attn_implementation", "sigmoid_attention", "format", "policy", "modules")
    return [line for line in file.read_text().splitlines() if any(f'"{n}"' in line for n in names)]


def copied(architecture: Architecture) -> None:
    """A copy has norms and biases of its own."""
    model = converted(architecture, layer_scale=0.5, norm="hybrid")
    other = copy.deepcopy(model)
    batch = architecture.batch()
    with torch.no_grad():
        before = answer(model, batch)
        for name, parameter in other.named_parameters():
            if ".sigmoid_branch." in name:
                parameter.zero_()
        assert torch.equal(answer(model, batch), before)
        assert not torch.equal(answer(other, batch), before)
