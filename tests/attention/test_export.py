"""torch.export with a dynamic length, and ONNX: one program serves every length."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sigmoid_attention.attention import (
    CentredKeys,
    NegLogLength,
    NegLogVisible,
    sigmoid_attention,
    sigmoid_decode,
)
from sigmoid_attention.nn import DecoderLM, Experts, ModelConfig, MoE, Router
from tests.support.attention.compiled import normal

# Two blocks of the CPU kernel and of the tiles lie between the last two.
LENGTHS = (40, 17, 300)
CALLS = {
    "default": {},
    "n": {"bias": NegLogLength(64)},
    "visible": {"bias": NegLogVisible()},
    "centred": {"bias": CentredKeys(NegLogVisible(), torch.tensor([0.5, 1.0]))},
    "centred-window": {"bias": CentredKeys(-2.0), "window_size": (9, -1)},
    "heads": {"bias": torch.tensor([-2.0, -3.0]).view(1, 2, 1, 1)},
    "tiled": {"bias": -3.0, "impl": "tiled"},
    "reference": {"bias": -3.0, "impl": "reference"},
}


class Causal(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, query, key, value):
        return sigmoid_attention(query, key, value, is_causal=True, **self.settings)


def qkv(length: int) -> list[Tensor]:
    return [normal(2, 2, length, 8, seed=seed) for seed in range(3)]


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_an_exported_call_serves_every_length(name, strict):
    module = Causal(**CALLS[name])
    length = torch.export.Dim("length", min=2, max=2**16)
    dynamic = ({2: length},) * 3
    exported = torch.export.export(module, (*qkv(40),), dynamic_shapes=dynamic, strict=strict)
    stored = io.BytesIO()
    torch.export.save(exported, stored)
    stored.seek(0)
    for program in (exported, torch.export.load(stored), exported.run_decompositions()):
        for n in LENGTHS:
            torch.testing.assert_close(program.module()(*qkv(n)), module(*qkv(n)))


def in_onnx(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: tuple) -> "OnnxModel":
    onnxruntime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(
        module, inputs, dynamo=True, dynamic_shapes=dynamic, optimize=False, verbose=False
    )
    stored = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(stored, providers=["CPUExecutionProvider"])
    return OnnxModel(session)


class OnnxModel:
    def __init__(self, session):
        self.session = session

    def __call__(self, *inputs: Tensor) -> Tensor:
        names = [each.name for each in self.session.get_inputs()]
        arguments = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(np.asarray(self.session.run(None, arguments)[0]))


# What torch's exporter and the packages that it imports say of themselves.
quiet = pytest.mark.filterwarnings("ignore")


class Cached(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, query, key_cache, value_cache, used):
        return sigmoid_decode(
            query, key_cache, value_cache, seqused_k=used, bias=self.bias, is_causal=True
        )


@quiet
@pytest.mark.parametrize(
    "name", ["n", "centred", pytest.param("centred-window", marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_onnx_runs_the_operator_at_every_length(name):
    module = Causal(**CALLS[name])
    length = torch.export.Dim("length", min=2, max=2**16)
    onnx = in_onnx(module, (*qkv(40),), ({2: length},) * 3)
    for n in LENGTHS:
        torch.testing.assert_close(onnx(*qkv(n)), module(*qkv(n)), rtol=1e-5, atol=1e-5)


@quiet
@pytest.mark.parametrize("bias", [-2.0, CentredKeys(-2.0)], ids=["number", "centred"])
@torch.no_grad()
def test_onnx_runs_a_decoding_step(bias):
    inputs = (normal(2, 2, 1, 8), *qkv(9)[:2], torch.tensor([9, 4]))
    onnx = in_onnx(Cached(bias), inputs, ({}, {}, {}, {}))
    shorter = (*inputs[:3], torch.tensor([2, 7]))
    for each in (inputs, shorter):
        torch.testing.assert_close(onnx(*each), Cached(bias)(*each), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@quiet
@torch.no_grad()
def test_onnx_runs_a_model():
    config = ModelConfig.recipe(
        "recommended", vocab_size=31, dim=16, layers=2, num_heads=2, max_seq_len=32
    )
    model = DecoderLM(config).eval()
    tokens = torch.arange(2 * 16).view(2, 16) % 31
    onnx = in_onnx(model, (tokens,), ({1: torch.export.Dim("length", min=2, max=32)},))
    for n in (16, 9):
        torch.testing.assert_close(onnx(tokens[:, :n]), model(tokens[:, :n]), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@torch.no_grad()
def test_a_mixture_of_experts_is_exported_for_every_length(strict):
    model = MoE(Router(8, 4, 2), Experts(4, 8, 16)).eval()
    length = torch.export.Dim("length", min=2, max=30)
    exported = torch.export.export(
        model, (normal(2, 9, 8),), dynamic_shapes=({1: length},), strict=strict
    )
    for n in (9, 5, 30):
        torch.testing.assert_close(exported.module()(normal(2, n, 8)), model(normal(2, n, 8)))
