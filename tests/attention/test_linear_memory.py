"""The extra memory of a call grows with its queries and keys, not with their product.

Sizes: Q queries, K keys; a full mask holds Q x K elements, which belong to the caller.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sigmoid_attention.attention import (
    CentredKeys,
    Constant,
    NegLogVisible,
    RowLSE,
    attention_statistics,
    sigmoid_attention,
    sigmoid_attention_with_mass,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention.bounds import tile_bounds
from sigmoid_attention.attention.impl.tiles import Tiles

Q, K = 2500, 3001
PAIRS = Q * K
# Elements: of a block of rows, and far below Q x K.
LIMIT = PAIRS // 5


class Largest(TorchDispatchMode):
    """The most elements that a result of an operation holds in memory of its own."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        storages = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if _real(x)}
        for tensor in tree_leaves(result):
            if _real(tensor) and tensor.untyped_storage()._cdata not in storages:
                bytes_held = tensor.untyped_storage().nbytes()
                self.elements = max(self.elements, bytes_held // tensor.element_size())
        return result


def _real(x) -> bool:
    return isinstance(x, torch.Tensor)


def text(queries: int = Q, keys: int = K):
    chance = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 1, 1, keys, 4, generator=chance).unbind(0)
    return query[:, :, :queries], key, value


def masks() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(4)
    shown = torch.rand(Q, K, generator=chance) < 0.4
    numbers = torch.zeros(Q, K).masked_fill(~shown, -math.inf)
    return {
        "QK-bool": shown,
        "QK-float": numbers,
        "111K-bool": shown[:1][None, None],
        "K-float": numbers[0],
        "Q1-bool": shown[:, :1],
        "1-bool": shown[0, :1],
        "scalar": shown[0, 0],
    }


MASKS = masks()
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


@each_mask
@pytest.mark.parametrize("window", [(-1, -1), (70, 3), (-1, 0)], ids=str)
def test_keys_in_sight_beside_a_mask(mask, window):
    arguments = {"attn_mask": mask, "window_size": window}
    with Largest() as largest:
        out = sigmoid_attention(*text(), bias=NegLogVisible(), **arguments)
    assert largest.elements < LIMIT
    behind = torch.arange(Q)[:, None] + (K - Q) - torch.arange(K)
    seen = (behind >= -window[1]) | (window[1] < 0)
    seen &= (behind <= window[0]) | (window[0] < 0)
    seen = seen & (mask if mask.dtype == torch.bool else mask > -1)
    bias = -seen.sum(-1, keepdim=True).clamp(min=1).log()
    torch.testing.assert_close(out, sigmoid_attention(*text(), bias=bias, **arguments))


@each_mask
@pytest.mark.parametrize("window", [(-1, -1), (70, 3), (-1, 0)], ids=str)
def test_means_of_keys_beside_a_mask(mask, window):
    """With gradients, unless the mask depends on the query: autograd keeps its pairs."""
    learns = mask.shape[:-1].numel() == 1
    tensors = [tensor.requires_grad_(learns) for tensor in text()]
    with Largest() as largest:
        out = sigmoid_attention(*tensors, mask, bias=CentredKeys(-3.0), window_size=window)
        if learns:
            out.sum().backward()
    assert largest.elements < LIMIT


def test_keys_in_sight_of_caches_and_packed_sequences():
    query, key, value = text()
    used = torch.tensor([K - 7])
    packed = [x[0].transpose(0, 1) for x in (query, key, value)]
    ends_q, ends_k = torch.tensor([0, 900, Q]), torch.tensor([0, 1000, K])
    with Largest() as largest:
        sigmoid_decode(query, key, value, seqused_k=used, bias=NegLogVisible(), is_causal=True)
        sigmoid_varlen_attention(*packed, ends_q, ends_k, Q, K, bias=NegLogVisible())
        centred = CentredKeys(-3.0)
        sigmoid_decode(query, key, value, seqused_k=used, bias=centred, is_causal=True)
        sigmoid_varlen_attention(*packed, ends_q, ends_k, Q, K, bias=centred, is_causal=True)
    assert largest.elements < LIMIT


def test_row_lse_and_statistics_of_rows():
    """By blocks of rows while nothing learns; their sums are those of a whole array."""
    arguments = {"attn_mask": MASKS["QK-float"], "alibi_slopes": torch.tensor([0.01])}
    arguments |= {"bias": RowLSE()}
    with Largest() as largest:
        out = sigmoid_attention(*text(), **arguments)
        aux = attention_statistics(*text(), **arguments)
    # The statistics come from the definition, in blocks of 2^23 scores.
    assert largest.elements <= 2**23
    few = slice(1000, 1040)
    query, key, value = text()
    logits = query[:, :, few] @ key.mT / 2 + MASKS["QK-float"][few]
    place = torch.arange(Q)[few, None] + (K - Q)
    logits = logits - 0.01 * (place - torch.arange(K)).abs()
    p = logits.softmax(-1)
    torch.testing.assert_close(out[:, :, few], p / (1 + p) @ value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(aux.mass[:, :, few], (p / (1 + p)).sum(-1))
    assert torch.equal(aux.visible[0, 0], MASKS["QK-bool"].sum(-1))


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_the_definition_by_blocks_is_the_definition(monkeypatch, dropout_p):
    query, key, value = (x.double() for x in text(301, 317))
    arguments = {"attn_mask": MASKS["QK-bool"][:301, :317], "bias": torch.randn(301, 1).double()}
    arguments |= {"impl": "reference", "is_causal": True}
    whole = sigmoid_attention(query, key, value, **arguments)
    statistics = attention_statistics(query, key, value, **arguments)
    monkeypatch.setattr("sigmoid_attention.attention.impl.reference_blocks.DENSE_SCORES", 5000)
    out = sigmoid_attention(query, key, value, dropout_p=dropout_p, **arguments)
    aux = attention_statistics(query, key, value, dropout_p=dropout_p, **arguments)
    assert torch.equal(aux.visible, statistics.visible)
    torch.testing.assert_close(aux.mass, statistics.mass)
    torch.testing.assert_close(aux.largest, statistics.largest)
    if dropout_p == 0:
        torch.testing.assert_close(out, whole)


@pytest.mark.parametrize("impl", ["reference", "tiled", "auto"])
def test_the_mass_beside_the_output(impl, monkeypatch):
    monkeypatch.setattr("sigmoid_attention.attention.impl.reference_blocks.DENSE_SCORES", LIMIT)
    leaves = [x.requires_grad_(impl != "reference") for x in text()]
    with Largest() as largest:
        out, mass = sigmoid_attention_with_mass(*leaves, bias=-3.0, is_causal=True, impl=impl)
        if impl != "reference":
            (out.sum() + mass.sum()).backward()
    assert largest.elements <= LIMIT


@each_mask
@pytest.mark.parametrize("bias", [torch.tensor(-3.0), torch.zeros(Q, K)], ids=["number", "QK"])
def test_bounds_of_tiles(mask, bias):
    query, key, _ = text()
    with Largest() as largest:
        tile_bounds(query, key, bias=bias, scale=0.5, block_q=128, block_k=128, attn_mask=mask)
    assert largest.elements < LIMIT


def test_a_tile_forms_its_own_offsets_alone():
    query, key, value = text()
    tiles = Tiles(query, key, value, torch.tensor(0.0), None, None, 1.0, None, -1, 0, 128, 128)
    tile = tiles.cut(3, 23, torch.tensor([0]))
    with Largest() as largest:
        offset = tile.offset()
    assert largest.elements <= max(Q, 128 * 128)
    expected = (torch.arange(Q)[:, None] + K - Q - torch.arange(K))[tile.rows, tile.columns]
    assert torch.equal(offset, expected)


def test_the_limit_is_met_by_an_array_of_pairs():
    """What is measured here would be seen."""
    with Largest() as largest:
        Constant(-1.0).resolve(None)
        torch.ones(Q, 1) + torch.ones(K)
    assert largest.elements == PAIRS
