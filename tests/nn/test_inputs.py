"""An unsupported input of a layer raises an error that names it, before anything is written."""

import pytest
import torch
from torch import nn
from torch.fx.proxy import TraceError

from sigmoid_attention.nn import (
    Attention,
    Block,
    Experts,
    GELUFeedForward,
    MoE,
    Router,
    SigmoidMultiheadAttention,
)
from tests.support.attention.complaints import (
    NO_TENSORS,
    NOT_DENSE,
    assert_sentence,
    complaint,
    table,
)

DIM = 6
VISITS = {"experts": torch.tensor([[0], [2]]), "weights": torch.ones(2, 1)}
EVERY = {"experts": None, "weights": torch.ones(2, 3)}


def attention(**settings) -> Attention:
    return Attention(DIM, num_heads=2, max_seq_len=8, **settings)


READERS = {
    "Attention": attention,
    "softmax": lambda: attention(activation="softmax"),
    "weights": lambda: attention().weights,
    "Block": lambda: Block(attention(), GELUFeedForward(DIM, 8)),
    "Block-post": lambda: Block(attention(), GELUFeedForward(DIM, 8), norm_placement="post"),
    "Router": lambda: Router(DIM, experts=3, top_k=2),
    "MoE": lambda: MoE(Router(DIM, experts=3, top_k=2), Experts(3, DIM, 8)),
    "Experts": lambda: lambda x: Experts(3, DIM, 8)(x, **VISITS),
    "every-expert": lambda: lambda x: Experts(3, DIM, 8)(x, **EVERY),
}
# The others read any floating dtype: their products are taken in the dtype of the weights.
OF_ONE_DTYPE = ("Attention", "softmax", "weights", "Block", "Block-post", "every-expert")


@table(types=NO_TENSORS, values=NOT_DENSE, columns="value, mention")
@pytest.mark.parametrize("name", READERS)
def test_no_tensor(name, error, value, mention):
    assert_sentence(complaint(error, READERS[name](), {"x": value}), "x", (mention,))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("name", READERS)
def test_no_floating_tensor(name, dtype):
    message = complaint(ValueError, READERS[name](), {"x": torch.ones(2, 3, DIM).to(dtype)})
    assert_sentence(message, "x", ("floating", str(dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", OF_ONE_DTYPE)
def test_another_dtype_than_that_of_the_weights(name, dtype):
    message = complaint(ValueError, READERS[name](), {"x": torch.ones(2, 3, DIM, dtype=dtype)})
    assert_sentence(message, "x", ("torch.float32", str(dtype)))


@pytest.mark.parametrize("name", OF_ONE_DTYPE)
def test_autocast_makes_dtypes_agree_but_for_doubles(name):
    reader, shape = READERS[name](), (2, DIM) if name == "every-expert" else (2, 3, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        reader(torch.ones(shape, dtype=torch.bfloat16))
        message = complaint(ValueError, reader, {"x": torch.ones(shape, dtype=torch.float64)})
    assert_sentence(message, "x", ("torch.float32", "torch.float64"))


def test_a_projection_with_a_hook_may_cast_its_input():
    layer, x = attention(), torch.ones(1, 3, DIM, dtype=torch.float64)
    for linear in (layer.query, layer.key, layer.value):
        linear.register_forward_pre_hook(lambda _, inputs: tuple(each.float() for each in inputs))
    assert layer(x).equal(layer(x.float()))


def test_a_refused_call_leaves_the_cache_empty():
    layer = attention()
    cache = layer.new_cache(batch=2, length=8)
    complaint(ValueError, layer, {"x": torch.ones(2, 3, DIM).double(), "cache": cache})
    assert cache.length == 0 and cache.keys is None


@pytest.mark.parametrize(
    "error, wrong, name, mention",
    [
        (TypeError, {"experts": [[0], [2]]}, "experts", "[[0], [2]]"),
        (ValueError, {"experts": torch.ones(2, 1)}, "experts", "int64, got torch.float32"),
        (ValueError, {"weights": torch.ones(2, 1).long()}, "weights", "floating, got torch.int64"),
        (TypeError, {"weights": None}, "weights", "None"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_experts_and_their_weights(error, wrong, name, mention):
    message = complaint(error, Experts(3, DIM, 8), {"x": torch.ones(2, DIM)} | VISITS | wrong)
    assert_sentence(message, name, (mention,))


@pytest.mark.parametrize("make", [attention, READERS["Router"], READERS["MoE"]])
def test_torch_fx_traces_a_layer_as_a_part_of_a_module(make):
    layer, x = make(), torch.ones(2, 3, DIM)
    with pytest.raises(TraceError, match=f"^{type(layer).__name__}: .* a part of"):
        torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), layer(x))


def test_layers_do_not_share_the_compilers_limit_of_graphs():
    layers = (Attention, Block, Experts, MoE, Router, SigmoidMultiheadAttention)
    assert len({layer.forward.__code__ for layer in layers}) == len(layers)
