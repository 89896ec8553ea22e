"""Computations in fp32 or fp64 depend neither on torch's default dtype nor on autocast.

Training scripts set the default to bfloat16 to build their model in it. Each entry computes
something from tensors and modules with fixed dtypes; under any default it must give the bits that
it gives under float32. Entries without linear layers in fp32, which autocast casts, must do so
under autocast as well.
"""

import dataclasses
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from sigmoid_attention.attention import (
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.mixtures import FiniteDesign, Mixture
from sigmoid_attention.mixtures.data import Samples
from sigmoid_attention.mixtures.estimators import (
    MixtureOfExpertsClassifier,
    MixtureOfExpertsRegressor,
)
from sigmoid_attention.mixtures.stochastic import StochasticRecipe, paper_mode
from sigmoid_attention.nn import (
    CAPE,
    PRESETS,
    ALiBi,
    Attention,
    DecoderLM,
    LayerScale,
    RMSNorm,
    RoPE,
    SigmoidMultiheadAttention,
    SinCos,
    generate,
    softmax_attention,
)
from sigmoid_attention.nn.norm import QKNorm
from sigmoid_attention.theory.regularity import Ball, attention_bound, jacobian_norm
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.tasks.copying import Copying
from sigmoid_attention.training.tasks.recall import MultiQueryRecall
from sigmoid_attention.training.trainer import train
from tests.support.training.runs import tiny_config, tiny_model, tiny_text

FP32 = torch.float32
Results = Iterable[Tensor]


def normal(*sizes: int, seed: int = 0, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


QUERY, KEY, VALUE = (2 * normal(2, 4, 19, 8, seed=seed) for seed in range(3))
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0], dtype=FP32)
TOKENS = torch.arange(14).view(2, 7) * 17
PLACES = torch.arange(19)[None]
DATA = normal(40, 2, seed=5).double().numpy()
BIASES = (
    -2.0,
    NegLogLength(64),
    NegLogVisible(),
    RowLSE(),
    NegLogEffectiveLength((0.5, 0.25, 0.1, 0.0), 64),
)


def built(module: nn.Module) -> nn.Module:
    """A module in fp32, independent of the default dtype."""
    return module.to(FP32).eval()


torch.manual_seed(0)
ROPE = built(Attention(16, 2, max_seq_len=32, position=RoPE(), qk_norm="rms"))
ALIBI = built(Attention(16, 2, max_seq_len=32, position=ALiBi(), window_size=(5, 0)))
SOFTMAX = built(Attention(16, 2, max_seq_len=32, position=ALiBi(), activation="softmax"))
MULTIHEAD = built(SigmoidMultiheadAttention(16, 2, batch_first=True, sigmoid_bias=-2.0))
NORMS = built(nn.ModuleList([RMSNorm(8), LayerScale(8), QKNorm("layer", 8)]))
MODELS = {
    position: DecoderLM(dataclasses.replace(PRESETS["tiny"], position=position)).eval()
    for position in ("rope", "alibi", "sincos", "cape", "learned")
}


def implementation(impl: str) -> Callable[[], Results]:
    def results() -> Results:
        leaves = [tensor.clone().requires_grad_() for tensor in (QUERY, KEY, VALUE)]
        for bias in BIASES:
            out = sigmoid_attention(
                *leaves, bias=bias, alibi_slopes=SLOPES, softcap=3.0, is_causal=True, impl=impl
            )
            yield out
            yield from torch.autograd.grad(out.square().sum(), leaves)

    return results


def decoding() -> Results:
    for bias in BIASES:
        used = torch.tensor([19, 7])
        out = sigmoid_decode(QUERY[:, :, :1], KEY, VALUE, seqused_k=used, bias=bias, is_causal=True)
        yield out


def packed() -> Results:
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (QUERY, KEY, VALUE))
    ends = torch.tensor([0, 8, 19])
    for bias in BIASES:
        out = sigmoid_varlen_attention(query, key, value, ends, ends, 11, 11, bias=bias)
        yield out


def statistics() -> Results:
    torch.manual_seed(1)
    out = sigmoid_attention(QUERY, KEY, VALUE, bias=NegLogVisible(), dropout_p=0.3)
    return [out, *attention_statistics(QUERY, KEY, VALUE, bias=NegLogVisible())]


def softmax() -> Results:
    for settings in ({}, {"softcap": 2.0}, {"alibi_slopes": SLOPES, "window_size": (4, 0)}):
        out = softmax_attention(QUERY, KEY, VALUE, **settings)
        yield out


def positions() -> Results:
    torch.manual_seed(2)
    x = normal(2, 19, 16)
    yield from RoPE().rotate(QUERY, KEY, 1000 * PLACES)
    yield from (SinCos(16)(x, 1000 * PLACES), CAPE(16).train()(x, 1000 * PLACES))
    yield from (ALiBi().slopes(heads, "cpu") for heads in (1, 6, 12))


def norms() -> Results:
    rms, scale, qk = NORMS
    return [rms(QUERY), scale(QUERY), *qk(QUERY, KEY)]


def layers() -> Results:
    for layer in (ROPE, ALIBI, SOFTMAX):
        x = normal(2, 19, 16).requires_grad_()
        cache = layer.new_cache(2, 19)
        out = layer(x)
        yield from (out, *torch.autograd.grad(out.square().sum(), x))
        yield from (layer(x[:, :12], cache=cache), layer(x[:, 12:], cache=cache))
    yield from MULTIHEAD(*(normal(2, 19, 16),) * 3)


def models() -> Results:
    for model in MODELS.values():
        yield from (model(TOKENS), model.loss(TOKENS, TOKENS))
        yield generate(model, TOKENS, max_new_tokens=3)  # pyright: ignore[reportArgumentType]


def tasks() -> Results:
    yield from Copying(seq_len=12, batch_size=2, vocab_size=16, seed=0).batch(3)
    yield from MultiQueryRecall(64, batch_size=2, pairs=4, vocab_size=300, seed=0).batch(3)


def training() -> Results:
    model = TRAINED.__class__(TRAINED.config)
    model.to(FP32).load_state_dict(TRAINED.state_dict())
    train(model, tiny_text(), tiny_config(), progress=False)
    bits = bits_per_byte(model, ByteTokenizer(), [Document("a", b"some held-out text")], 6)
    return [*model.state_dict().values(), torch.tensor(bits, dtype=torch.float64)]


TRAINED = tiny_model()


def estimators() -> Results:
    common = {"n_experts": 2, "n_init": 4, "max_iter": 40, "random_state": 0}
    regressor = MixtureOfExpertsRegressor(**common).fit(DATA, DATA[:, 0] * DATA[:, 1])
    classifier = MixtureOfExpertsClassifier(**common).fit(DATA, DATA[:, 0] > DATA[:, 1])
    yield torch.from_numpy(regressor.predict(DATA))
    yield torch.from_numpy(classifier.predict_proba(DATA))


def mixtures() -> Results:
    family = Mixture("sigmoid", "tanh", k=2, d=2)
    truth = 2 * torch.arange(family.size).double().sin()
    data = Samples.draw(lambda x: family.predict(truth, x), count=2, n=30, d=2, sigma=0.1, seed=1)
    recipe = StochasticRecipe("adam", learning_rate=0.05, epochs=3, batch=7)
    yield paper_mode(family, data, truth.expand(2, -1), sigma=0.1, recipe=recipe).theta_BP
    yield FiniteDesign.sobol(32, d=2).inputs_Qd


def theory() -> Results:
    layer = LAYER_IN_DOUBLE
    bound = attention_bound(layer, Ball(2.0), 4)
    norm = jacobian_norm(lambda x: layer(x[None])[0], normal(4, 16, dtype=torch.float64))
    return [torch.tensor([bound.jacobian, norm.value], dtype=torch.float64)]


LAYER_IN_DOUBLE = Attention(16, 2, max_seq_len=32, position=ALiBi(), impl="reference").double()

COMPUTED: dict[str, Callable[[], Results]] = {
    **{impl: implementation(impl) for impl in ("auto", "reference", "tiled")},
    **{
        each.__name__: each
        for each in (
            decoding, packed, statistics, softmax, positions, norms, layers, models, tasks,
            training, estimators, mixtures, theory,
        )
    },
}  # fmt: skip


@pytest.fixture(params=[torch.bfloat16, torch.float64], ids=str)
def default(request):
    yield request.param
    torch.set_default_dtype(FP32)


@pytest.mark.filterwarnings("ignore:.*did not converge")
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED.keys())
def test_the_default_dtype_changes_nothing(compute, default):
    expected = list(compute())
    torch.set_default_dtype(default)
    for left, right in zip(compute(), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


LINEAR_IN_FP32 = {"layers", "models", "training"}


@pytest.mark.filterwarnings("ignore:.*did not converge")
@pytest.mark.parametrize("name", sorted(COMPUTED.keys() - LINEAR_IN_FP32))
def test_autocast_changes_nothing(name):
    expected = list(COMPUTED[name]())
    with torch.autocast("cpu", torch.bfloat16):
        actual = list(COMPUTED[name]())
    for left, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
