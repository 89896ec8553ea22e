"""Every weight is used inside the forward pass of the module that holds it.

Offloading, sharding, quantisation, adapters, parametrizations, hooks and per-sample gradients all
act on the calls of a module. They do not reach a weight that is used outside of these calls.
"""

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations

import sigmoid_attention.nn as layers
from sigmoid_attention import Learned, NegLogLength
from sigmoid_attention.nn import (
    CAPE,
    Attention,
    Block,
    DecoderLM,
    EmbeddingPosition,
    Experts,
    GELUFeedForward,
    LayerScale,
    LearnedPosition,
    ModelConfig,
    MoE,
    MoEConfig,
    QKNorm,
    Residual,
    RMSNorm,
    RoPE,
    Router,
    SigmoidMultiheadAttention,
    SinCos,
    SwiGLU,
    ValueResidual,
    generate,
)

B, N, C = 3, 5, 8


def decoder(**changes: Any) -> DecoderLM:
    sizes = dict(vocab_size=11, dim=C, layers=2, num_heads=2, max_seq_len=16, ffn_dim=12)
    return DecoderLM(ModelConfig.recipe("recommended", **{**sizes, **changes}))


def attention(**changes: Any) -> Attention:
    settings = dict(num_heads=4, num_kv_heads=2, max_seq_len=16, position=RoPE(), qk_norm="rms")
    return Attention(C, **{**settings, "bias": Learned(NegLogLength(16), 4), **changes})


def multihead(**changes: Any) -> SigmoidMultiheadAttention:
    settings = dict(batch_first=True, sigmoid_bias=Learned(NegLogLength(16), 2))
    return SigmoidMultiheadAttention(C, 2, **{**settings, **changes})


def trained(module: nn.Module) -> nn.Module:
    """The module with weights away from their start, which is zero for some."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def floats(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(B, *shape),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(11, (B, N)),)


def placed() -> tuple[Tensor, ...]:
    return torch.randn(B, N, C), torch.arange(N).expand(B, N)


def thrice() -> tuple[Tensor, ...]:
    return (*(torch.randn(B, N, C) for _ in range(3)), None, False)  # pyright: ignore


class Routed(nn.Module):
    """Experts, and which of them each sample visits."""

    def __init__(self, dense: bool, **changes: Any) -> None:
        super().__init__()
        self.dense, self.experts = dense, Experts(4, C, 6, **changes)

    def forward(self, x_NC: Tensor) -> Tensor:
        weights = x_NC.flatten(0, -2)[:, :4].sigmoid()
        chosen = None if self.dense else torch.arange(4).expand(len(weights), 4)
        return self.experts(x_NC.flatten(0, -2), chosen, weights).view_as(x_NC)


OPTIONS = dict(
    centred_keys=True, state_bias=True, gate="head", value_residual=True, mass_exponent="learned"
)
MIXTURE = MoEConfig(experts=4, hidden=6, top_k=2, shared_experts=1, normalize=True)
# What builds a module, and what its inputs are, of which the first B are samples.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "Attention": (attention, floats(N, C)),
    "Attention-softmax": (lambda: attention(activation="softmax", linear_bias=True), floats(N, C)),
    "Attention-centred": (lambda: attention(centred_keys=True), floats(N, C)),
    "Attention-layer-norm": (lambda: attention(qk_norm="layer", linear_bias=True), floats(N, C)),
    "Block": (lambda: Block(attention(), SwiGLU(C, 12), layer_scale=0.1), floats(N, C)),
    "Block-hybrid": (
        lambda: Block(attention(), MIXTURE.build(C), norm_placement="hybrid"),
        floats(N, C),
    ),
    "Block-post": (
        lambda: Block(attention(), GELUFeedForward(C, 12), norm_placement="post"),
        floats(N, C),
    ),
    "DecoderLM": (decoder, tokens),
    "DecoderLM-head": (lambda: decoder(tie_embeddings=False, learn_bias=True), tokens),
    "DecoderLM-learned": (lambda: decoder(position="learned", layer_scale=0.1), tokens),
    "DecoderLM-options": (lambda: trained(decoder(**OPTIONS)), tokens),
    "DecoderLM-moe": (lambda: decoder(moe=MIXTURE), tokens),
    "DecoderLM-dense-moe": (lambda: decoder(moe=MoEConfig(experts=3, hidden=4)), tokens),
    "EmbeddingPosition": (EmbeddingPosition, placed),
    "LearnedPosition": (lambda: LearnedPosition(C, 16), placed),
    "SinCos": (lambda: SinCos(C), placed),
    "CAPE": (lambda: CAPE(C).eval(), placed),
    "Experts": (lambda: Routed(dense=False), floats(N, C)),
    "Experts-gelu": (lambda: Routed(dense=False, kind="gelu"), floats(N, C)),
    "Experts-dense": (lambda: Routed(dense=True), floats(N, C)),
    "GELUFeedForward": (lambda: GELUFeedForward(C, 12), floats(N, C)),
    "SwiGLU": (lambda: SwiGLU(C, 12), floats(N, C)),
    "LayerScale": (lambda: LayerScale(C), floats(N, C)),
    "QKNorm": (lambda: QKNorm("rms", C), lambda: (*floats(2, N, C)(), *floats(2, N, C)())),
    "QKNorm-layer": (lambda: QKNorm("layer", C), lambda: (*floats(2, N, C)(), *floats(2, N, C)())),
    "RMSNorm": (lambda: RMSNorm(C), floats(N, C)),
    "StateBias": (lambda: trained(attention(bias=-2.0, state_bias=True)), floats(N, C)),
    "Gate": (lambda: trained(attention(gate="element")), floats(N, C)),
    "MassExponent": (lambda: attention(mass_exponent="learned"), floats(N, C)),
    "ValueResidual": (ValueResidual, lambda: (*floats(2, N, 4)(), *floats(2, N, 4)())),
    "Residual": (
        lambda: Residual(C, "hybrid", layer_scale=0.1),
        lambda: (*floats(N, C)(), nn.Identity()),
    ),
    "MoE": (lambda: MIXTURE.build(C), floats(N, C)),
    "MoE-all": (lambda: MoEConfig(experts=3, hidden=4).build(C), floats(N, C)),
    "Router": (lambda: Router(C, 4, 2, intercept=True), floats(N, C)),
    "Router-balanced": (lambda: Router(C, 4, 2, balance_rate=1e-3), floats(N, C)),
    "Router-quadratic": (lambda: Router(C, 4, affinity="fully_quadratic"), floats(N, C)),
    "SigmoidMultiheadAttention": (multihead, thrice),
    "SigmoidMultiheadAttention-kv": (
        lambda: multihead(kdim=C, vdim=C, add_bias_kv=True, bias=False),
        thrice,
    ),
}
each_module = pytest.mark.parametrize("name", CASES)


def made(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    build, inputs = CASES[name]
    return build(), inputs()


def answer(out: Any) -> Tensor:
    """All that has a gradient in what a module answers, a row for each sample."""
    parts = [part for part in (out if isinstance(out, tuple) else (out,)) if part is not None]
    return torch.cat([part.flatten(1) for part in parts if part.is_floating_point()], 1)


def holders(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold parameters themselves."""
    return {name: part for name, part in module.named_modules() if part._parameters}


def test_every_layer_is_tried():
    exported = (getattr(layers, name) for name in layers.__all__)
    wanted = {
        kind.__name__ for kind in exported if isinstance(kind, type) and issubclass(kind, nn.Module)
    }
    assert {name.partition("-")[0] for name in CASES} == wanted
    assert isinstance(made("MoE")[0], MoE)


@each_module
def test_hooks_of_all_that_hold_parameters_are_called(name):
    module, inputs = made(name)
    called = {"before": set(), "after": set()}
    for part_name, part in holders(module).items():
        part.register_forward_pre_hook(lambda *_, n=part_name: called["before"].add(n))
        part.register_forward_hook(lambda *_, n=part_name: called["after"].add(n))
    module(*inputs)
    assert called["before"] == called["after"] == set(holders(module))


@each_module
def test_offloaded_as_in_place(name):
    module, inputs = made(name)
    module.eval()
    with torch.no_grad():
        expected = answer(module(*inputs))
        accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
        assert all(parameter.is_meta for parameter in module.parameters())
        assert torch.equal(answer(module(*inputs)), expected)


@each_module
# torch says which of its own operators have no rule for vmap of their own, and take time.
@pytest.mark.filterwarnings("ignore:There is a performance drop|torch.searchsorted:UserWarning")
def test_gradients_for_each_sample(name):
    module, inputs = made(name)
    module.double()
    inputs = tuple(
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )
    parameters = dict(module.named_parameters())
    weights = torch.randn_like(answer(module(*inputs))[0])
    samples = tuple(x if isinstance(x, Tensor) else None for x in inputs)

    def loss(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        given = [x if one is None else one[None] for one, x in zip(sample, inputs, strict=True)]
        return (answer(functional_call(module, parameters, tuple(given)))[0] * weights).sum()

    if not parameters:
        return
    dims = tuple(None if x is None else 0 for x in samples)
    actual = vmap(grad(loss), (None, *dims), randomness="different")(parameters, *samples)
    for b in range(B):
        module.zero_grad()
        loss(parameters, *(None if x is None else x[b] for x in samples)).backward()
        for key, parameter in parameters.items():
            torch.testing.assert_close(actual[key][b], parameter.grad)


@each_module
def test_gradients_for_each_sample_by_hooks_of_linear_layers(name):
    """As opacus takes them: from what each layer is given and from the gradient of its answer."""
    module, inputs = made(name)
    given, gradients = {}, {}

    def keep(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        given[layer] = args[0].detach()
        out.register_hook(lambda gradient: gradients.__setitem__(layer, gradient))

    linear = [part for part in module.modules() if type(part) is nn.Linear]
    for part in linear:
        part.register_forward_hook(keep)
    out = answer(module(*inputs))
    if linear:
        out.square().sum().backward()
    for part in linear:
        each = torch.einsum(
            "bno,bni->boi", gradients[part].flatten(1, -2), given[part].flatten(1, -2)
        )
        assert len(each) == B
        torch.testing.assert_close(each.sum(0), part.weight.grad, rtol=1e-4, atol=1e-5)


class Adapted(nn.Module):
    """A linear layer with an addition of rank 1, and no weight of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 1, bias=False)
        self.up = nn.Linear(1, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@each_module
def test_linear_layers_may_be_replaced_by_adapted_ones(name):
    module, inputs = made(name)
    expected = answer(module(*inputs))
    for parent in list(module.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, child_name, Adapted(child))
    out = answer(module(*inputs))
    torch.testing.assert_close(out, expected)
    if out.requires_grad:
        out.square().sum().backward()
    for part in module.modules():
        if isinstance(part, Adapted):
            assert part.up.weight.grad.abs().sum() > 0


@each_module
def test_weights_may_be_parametrized(name):
    module, inputs = made(name)
    expected = answer(module(*inputs))
    for part in list(module.modules()):
        for key, parameter in list(part._parameters.items()):
            if parameter is not None and parameter.dim() > 1:
                parametrizations.weight_norm(part, key)
            elif parameter is not None:
                nn.utils.parametrize.register_parametrization(part, key, nn.Identity())
    torch.testing.assert_close(answer(module(*inputs)), expected, rtol=1e-4, atol=1e-5)


@each_module
# torch.ao.quantization is deprecated in favour of torchao, and says so.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_dynamically(name):
    module, inputs = made(name)
    expected = answer(module.eval()(*inputs))
    quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    out = answer(quantised(*inputs))
    assert out.shape == expected.shape and (out - expected).norm() < 0.2 * expected.norm()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "head"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_text_from_offloaded_quantised_and_adapted_models(tied):
    model, prompt = decoder(tie_embeddings=tied).eval(), torch.randint(11, (2, 4))
    expected = generate(model, prompt, max_new_tokens=5)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    assert torch.equal(generate(offloaded, prompt, max_new_tokens=5), expected)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert generate(quantised, prompt, max_new_tokens=5).shape == (2, 9)
    for block in model.blocks:
        block.attention.key = Adapted(block.attention.key)
    assert torch.equal(generate(model, prompt, max_new_tokens=5), expected)
