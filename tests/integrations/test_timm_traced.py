"""Converted vision transformers in graphs and traces, and failed conversions of timm models."""

import sys

import pytest
import timm
import torch
from timm.models import FeatureGraphNet
from timm.models._features_fx import create_feature_extractor
from torch import nn

from sigmoid_attention import Learned, NegLogLength
from sigmoid_attention.integrations.timm import SigmoidAttention, convert, register
from sigmoid_attention.integrations.timm_layers import SigmoidLayer

CONVERT = sys.modules[convert.__module__]
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 4}
KINDS = {
    "plain": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 28}),
    "rope": ("vit_small_patch16_rope_224", {"img_size": 32}),
}


def built(kind, bias=None, **settings):
    name, options = KINDS[kind]
    model = timm.create_model(name, num_classes=3, **options | SMALL | settings).eval()
    image = torch.randn(2, 3, options["img_size"], options["img_size"])
    return convert(model, bias), image


BIASES = {"number": -2.0, "policy": NegLogLength(17), "learned": Learned(-2.0, num_heads=4)}


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)
def test_a_symbolic_trace_has_attention_as_a_leaf(bias):
    model, image = built("plain", bias)
    graph = torch.fx.symbolic_trace(model)
    leaves = {node.target for node in graph.graph.nodes if node.op == "call_module"}
    assert {"blocks.0.attn", "blocks.1.attn"} <= leaves
    torch.testing.assert_close(graph(image), model(image))


@pytest.mark.parametrize("kind", KINDS)
def test_timms_graph_features(kind):
    model, image = built(kind)
    features = create_feature_extractor(model, {"blocks.0": "block", "blocks.1.attn": "attention"})(
        image
    )
    expected = {}
    for name, part in (("block", model.blocks[0]), ("attention", model.blocks[1].attn)):
        part.register_forward_hook(lambda _m, _a, out, name=name: expected.update({name: out}))
    model(image)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("features", ["fx", "hook", "getter"])
def test_features_only(features):
    register()
    settings = {"features_only": True, "out_indices": (0, 1), "feature_cls": features}
    model = timm.create_model(
        "vit_tiny_patch16_224", attn_layer="sigmoid", img_size=32, patch_size=8, **SMALL | settings
    )
    actual = model(torch.randn(1, 3, 32, 32))
    # Hooks and graphs give tokens, with the class token; the getter gives an image of them.
    assert [x.shape for x in actual] == [(1, 32, 4, 4) if features == "getter" else (1, 17, 32)] * 2


def test_features_of_a_converted_model():
    model, image = built("plain")
    features = FeatureGraphNet(model, out_indices=(0, 1))(image)
    settings = {"intermediates_only": True, "output_fmt": "NLC"}
    expected = model.forward_intermediates(image, indices=[0, 1], **settings)
    torch.testing.assert_close([x[:, 1:] for x in features], expected)


def test_a_graph_that_was_traced_before_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL)
    with pytest.raises(ValueError, match=r"^model:? .* has no attention of the classes"):
        convert(torch.fx.symbolic_trace(model))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_is_the_model_for_batches_of_other_sizes(kind):
    model, image = built(kind)
    traced = torch.jit.trace(model, image[:1])
    torch.testing.assert_close(traced(image), model(image))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_scripting_is_refused(kind):
    model, _ = built(kind)
    with pytest.raises(NotImplementedError, match=r"cannot be scripted; torch\.jit\.trace and"):
        torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_each_block_is_one_graph_by_itself():
    model, image = built("plain", Learned(-2.0, num_heads=4))
    expected = model(image)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(image), expected)


def snapshot(model):
    """All that modules hold: containers by content, the rest by identity."""
    return [
        (type(each), {n: list(v) if isinstance(v, dict | set) else id(v) for n, v in held.items()})
        for each in model.modules()
        for held in [vars(each), *(v for v in vars(each).values() if isinstance(v, dict))]
    ]


class Injected(Exception):
    pass


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (CONVERT, "_become_sigmoid", 1),
        (CONVERT, "_become_sigmoid", 2),
        (CONVERT, "trace_softmax", 1),
        (SigmoidLayer, "_answer", 2),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("bias", [-2.0, Learned(-2.0, num_heads=4)], ids=["number", "learned"])
@pytest.mark.parametrize("before", ["timm", "sigmoid"])
def test_a_failure_at_any_step_is_undone(owner, name, call, bias, before, monkeypatch):
    layer = {"attn_layer": SigmoidAttention} if before == "sigmoid" else {}
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL, **layer)
    if before == "sigmoid":
        convert(model, Learned(-1.0, num_heads=4))
    kept, real, calls = snapshot(model), getattr(owner, name), []

    def failing(*args, **kwargs):
        answer = real(*args, **kwargs)
        calls.append(None)
        if len(calls) == call:
            raise Injected
        return answer

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(Injected):
        convert(model, bias)
    assert snapshot(model) == kept


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_takes_a_number_and_refuses_what_learns():
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **SMALL).eval()
    model = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"^bias: Learned puts a parameter beside"):
        convert(model, Learned(-2.0, num_heads=4))
    assert type(model.blocks[0].attn) is not SigmoidAttention
    assert convert(model, -2.0)(torch.zeros(1, 3, 32, 32)).isfinite().all()
