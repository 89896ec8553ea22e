"""Layers and models with options under torch.compile, torch.export and checkpoints."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sigmoid_attention.nn import Attention, DecoderLM, ModelConfig, RoPEWithALiBi

OPTIONS = dict(centred_keys=True, state_bias=True, gate="element", mass_exponent="learned")
VARIANTS = {
    "centred": dict(centred_keys=True),
    "all": dict(OPTIONS, value_residual=True),
    "all-window": dict(OPTIONS, value_residual=True, window_size=(3, 0)),
}
B, H, D = 2, 4, 4
CLOSE = dict(atol=1e-5, rtol=1e-5)


def make(**settings):
    layer = Attention(H * D, H, max_seq_len=16, position=RoPEWithALiBi(), **settings)
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer


def inputs(layer, tokens):
    x = torch.randn(B, tokens, H * D)
    wanted = layer.value_residual is not None
    return x, {"first_value": torch.randn(B, H, tokens, D)} if wanted else {}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_compiled_layer_has_the_same_output_and_gradients(settings):
    layer = make(**settings)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for tokens in (5, 9):
        x, first = inputs(layer, tokens)
        results = []
        for call in (layer, compiled):
            layer.zero_grad()
            out = call(x, **first)
            out.square().sum().backward()
            results.append([out, *(parameter.grad for parameter in layer.parameters())])
        torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_compiled_layer_reads_a_cache(settings):
    layer = make(**settings)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True)
    x, first = inputs(layer, 9)
    cache, outputs = layer.new_cache(B, 16), []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 9)):
        values = {name: value[:, :, start:stop] for name, value in first.items()}
        outputs.append(compiled(x[:, start:stop], cache=cache, **values))
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x, **first), **CLOSE)


def model():
    config = ModelConfig(
        vocab_size=31, dim=16, layers=3, num_heads=2, max_seq_len=16, **VARIANTS["all"]
    )
    return DecoderLM(config)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_checkpointed_blocks_have_the_same_gradients(reentrant):
    plain = model()
    tokens = torch.randint(31, (2, 7))
    plain.loss(tokens, tokens).backward()
    expected = [parameter.grad.clone() for parameter in plain.parameters()]
    plain.zero_grad()
    for block in plain.blocks:
        forward = block.forward

        def recomputed(x, forward=forward, first_value=None, **settings):
            def run(x, first_value):
                return forward(x, first_value=first_value, **settings)

            return checkpoint(run, x, first_value, use_reentrant=reentrant)

        block.forward = recomputed
    plain.loss(tokens, tokens).backward()
    actual = [parameter.grad for parameter in plain.parameters()]
    torch.testing.assert_close(actual, expected, **CLOSE)


@torch.no_grad()
def test_compiled_blocks_of_a_model():
    plain, tokens = model(), torch.randint(31, (2, 7))
    expected = plain(tokens)
    for block in plain.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(plain(tokens), expected, **CLOSE)


def test_an_exported_model_serves_other_lengths():
    exported = torch.export.export(
        model().eval(),
        (torch.randint(31, (2, 7)),),
        dynamic_shapes={"tokens": {1: torch.export.Dim("tokens", min=2, max=16)}},
        strict=False,
    )
    plain = model().eval()
    plain.load_state_dict(exported.state_dict)
    for length in (3, 7, 12):
        tokens = torch.randint(31, (2, length))
        torch.testing.assert_close(exported.module()(tokens), plain(tokens), **CLOSE)
