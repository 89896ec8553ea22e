"""flash-attn's cache, step by step against lists of all written tokens."""

import math

import numpy as np
import pytest
import torch

from sigmoid_attention import (
    CentredKeys,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
)
from sigmoid_attention.integrations.flash_attn import flash_attn_with_kvcache
from tests.support.attention.token_major_oracle import attend, distances

CLOSE = {"rtol": 1e-11, "atol": 1e-13}
BIAS = NegLogLength(50)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def expected(q, keys, values, *, causal, window=(-1, -1), slopes=None, softcap=0.0):
    """(B, S, H, E) from a list of each sequence's keys (K, G, D) and values."""
    rows = []
    for b, (k, v) in enumerate(zip(keys, values, strict=True)):
        behind = distances(q.shape[1], len(k))
        visible = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
        if window[0] >= 0:
            visible = visible & (behind <= window[0])
        bias = -math.log(50)
        if slopes is not None:
            bias = bias - slopes[..., None, None] * behind.abs()
        rows.append(attend(q[b : b + 1], k[None], v[None], bias, visible=visible, softcap=softcap))
    return torch.cat(rows)


def rotated(x_BNHD, cos, sin, places_BN, interleaved):
    """Pairs of channels as complex numbers, turned by multiplication."""
    half = cos.shape[1]
    turning, rest = x_BNHD[..., : 2 * half], x_BNHD[..., 2 * half :]
    if interleaved:
        numbers = torch.complex(turning[..., 0::2].contiguous(), turning[..., 1::2].contiguous())
    else:
        numbers = torch.complex(turning[..., :half].contiguous(), turning[..., half:].contiguous())
    numbers = numbers * torch.complex(cos, sin)[places_BN][:, :, None]
    if interleaved:
        turned = torch.view_as_real(numbers).flatten(-2)
    else:
        turned = torch.cat((numbers.real, numbers.imag), -1)
    return torch.cat((turned, rest), -1)


def table(places=40, half=3):
    angles = torch.outer(torch.arange(places).double(), torch.tensor([1.0, 0.3, 0.05])[:half])
    # float32 is what tables are kept in, and what turns them.
    return angles.cos().float(), angles.sin().float()


class Cache:
    """A cache of 4 rows of 12 places, or of pages of 4 places; both begin filled with NaN."""

    def __init__(self, kind, B=3, G=2, D=8, E=8):
        self.kind, self.arguments = kind, {}
        shape = {"rows": (4, 12, G), "indexed": (4, 12, G), "paged": (11, 4, G)}[kind]
        self.k, self.v = torch.full((*shape, D), math.nan), torch.full((*shape, E), math.nan)
        self.k, self.v = self.k.double(), self.v.double()
        if kind == "indexed":
            self.arguments["cache_batch_idx"] = torch.tensor([2, 0, 3], dtype=torch.int32)
        if kind == "paged":
            pages = [[7, 2, 9], [0, 4, 1], [10, 3, 5]]
            self.arguments["block_table"] = torch.tensor(pages, dtype=torch.int32)


@pytest.mark.parametrize("kind", ["rows", "indexed", "paged"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_steps_of_several_tokens_append_and_attend(kind, causal):
    cache, lengths = Cache(kind), torch.tensor([0, 3, 5], dtype=torch.int32)
    keys = [random(n, 2, 8) for n in lengths]
    values = [random(n, 2, 8) for n in lengths]
    start = Cache(kind)
    for b, n in enumerate(lengths.tolist()):
        for t in range(n):
            row, place = b, t
            if kind == "indexed":
                row = int(start.arguments["cache_batch_idx"][b])
            if kind == "paged":
                row, place = int(start.arguments["block_table"][b, t // 4]), t % 4
            cache.k[row, place], cache.v[row, place] = keys[b][t], values[b][t]
    for new in (3, 1, 2):
        q, k, v = random(3, new, 4, 8), random(3, new, 2, 8), random(3, new, 2, 8)
        keys = [torch.cat((old, added)) for old, added in zip(keys, k, strict=True)]
        values = [torch.cat((old, added)) for old, added in zip(values, v, strict=True)]
        out = flash_attn_with_kvcache(
            q, cache.k, cache.v, k, v, cache_seqlens=lengths, causal=causal,
            sigmoid_bias=BIAS, **cache.arguments,
        )  # fmt: skip
        torch.testing.assert_close(out, expected(q, keys, values, causal=causal), **CLOSE)
        lengths = lengths + new
    held = int((~cache.k[..., 0, 0].isnan()).sum())
    assert held == sum(len(added) for added in keys)


@pytest.mark.parametrize("interleaved", [True, False], ids=["neighbours", "halves"])
@pytest.mark.parametrize("where", ["each", "all-at-one"])
def test_rotary_turns_new_keys_and_queries_to_their_places(interleaved, where):
    cache, lengths = Cache("rows"), torch.tensor([2, 0, 6])
    (cos, sin), q, k, v = table(), random(3, 3, 4, 8), random(3, 3, 2, 8), random(3, 3, 2, 8)
    old = [random(n, 2, 8) for n in lengths]
    for b, values in enumerate(old):
        cache.k[b, : len(values)], cache.v[b, : len(values)] = values, values
    new = q.float(), k.float(), v.float()
    out = flash_attn_with_kvcache(
        new[0], cache.k.float(), cache.v.float(), new[1], new[2], cos, sin, lengths,
        causal=where == "each", rotary_interleaved=interleaved, sigmoid_bias=BIAS,
    )  # fmt: skip
    places = lengths[:, None] + torch.arange(3)
    at = places if where == "each" else lengths[:, None].expand(-1, 3)
    turned_k = rotated(k, cos.double(), sin.double(), places, interleaved)
    turned_q = rotated(q, cos.double(), sin.double(), at, interleaved)
    exact = expected(
        turned_q,
        [torch.cat(pair) for pair in zip(old, turned_k, strict=True)],
        [torch.cat(pair) for pair in zip(old, v, strict=True)],
        causal=where == "each",
    )
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_window_too_gives_each_query_its_place():
    cache = Cache("rows")
    (cos, sin), q, k, v = table(), random(3, 3, 4, 8), random(3, 3, 2, 8), random(3, 3, 2, 8)
    out = flash_attn_with_kvcache(
        q, cache.k, cache.v, k, v, cos, sin, 0, window_size=(1, 0), sigmoid_bias=BIAS
    )
    places = torch.arange(3).expand(3, -1)
    turned_q, turned_k = (rotated(x, cos.double(), sin.double(), places, True) for x in (q, k))
    exact = expected(turned_q, turned_k, v, causal=True, window=(1, 0))
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-6)


def test_without_new_tokens_the_cache_is_read_and_left_alone():
    cache = Cache("rows")
    cache.k, cache.v = random(4, 12, 2, 8), random(4, 12, 2, 5)
    before, q, slopes = cache.k.clone(), random(3, 2, 4, 8), random(4).abs()
    settings = {"softcap": 0.7, "causal": True}
    out = flash_attn_with_kvcache(
        q, cache.k, cache.v, cache_seqlens=torch.tensor([2, 12, 7]), alibi_slopes=slopes,
        window_size=(4, -1), sigmoid_bias=BIAS, **settings,
    )  # fmt: skip
    keys = [cache.k[b, :n] for b, n in enumerate((2, 12, 7))]
    values = [cache.v[b, :n] for b, n in enumerate((2, 12, 7))]
    exact = expected(q, keys, values, window=(4, -1), slopes=slopes, **settings)
    torch.testing.assert_close(out, exact, **CLOSE)
    assert torch.equal(cache.k, before)
    full = flash_attn_with_kvcache(q, cache.k, cache.v, sigmoid_bias=BIAS)
    exact = expected(q, cache.k[:3], cache.v[:3], causal=False)
    torch.testing.assert_close(full, exact, **CLOSE)


def test_there_is_no_gradient_and_the_cache_stays_outside_of_one():
    cache = Cache("rows")
    k = random(3, 1, 2, 8).requires_grad_()
    out = flash_attn_with_kvcache(
        random(3, 1, 4, 8).requires_grad_(), cache.k, cache.v, k, k, cache_seqlens=0,
        sigmoid_bias=BIAS,
    )  # fmt: skip
    assert not out.requires_grad
    assert not cache.k.requires_grad


GOOD = {
    "q": torch.ones(3, 2, 4, 8),
    "k_cache": torch.ones(4, 12, 2, 8),
    "v_cache": torch.ones(4, 12, 2, 8),
    "k": torch.full((3, 2, 2, 8), 2.0),
    "v": torch.full((3, 2, 2, 8), 2.0),
    "cache_seqlens": 5,
    "sigmoid_bias": BIAS,
}
COS = torch.ones(40, 4)


@pytest.mark.parametrize(
    "error, wrong, name, mention",
    [
        (ValueError, {"sigmoid_bias": None}, "sigmoid_bias", "trained with"),
        (ValueError, {"q": torch.ones(3, 4, 8)}, "q", "(3, 4, 8)"),
        (ValueError, {"k_cache": torch.ones(4, 12, 8)}, "k_cache", "(4, 12, 8)"),
        (ValueError, {"k_cache": torch.ones(2, 12, 2, 8)}, "k_cache", "3 sequences, got 2"),
        (ValueError, {"v": None}, "k, v", "only k"),
        (ValueError, {"k": torch.ones(3, 2, 2, 8).half()}, "k", "torch.float16"),
        (ValueError, {"v": torch.ones(3, 1, 2, 8)}, "v", "(3, 1, 2, 8)"),
        (ValueError, {"cache_seqlens": None}, "cache_seqlens", "None"),
        (ValueError, {"cache_seqlens": 11},
         "cache_seqlens", "room for 2 new tokens in a cache of 12"),
        (ValueError, {"cache_seqlens": torch.tensor([1, -1, 2])}, "cache_seqlens", "-1 to 2"),
        (ValueError, {"cache_seqlens": torch.tensor([1, 2])}, "cache_seqlens", "(2,)"),
        (ValueError, {"cache_seqlens": torch.ones(3)}, "cache_seqlens", "torch.float32"),
        (ValueError, {"cache_batch_idx": torch.tensor([0, 1])}, "cache_batch_idx", "(2,)"),
        (ValueError, {"cache_batch_idx": torch.tensor([0, 1, 4])},
         "block_table, cache_batch_idx", "0 to 4"),
        (ValueError, {"block_table": torch.zeros(2, 1).int()}, "block_table", "(2, 1)"),
        (ValueError,
         {"block_table": torch.zeros(3, 1).int(), "cache_batch_idx": torch.zeros(3).int()},
         "cache_batch_idx", "block_table"),
        (ValueError, {"block_table": torch.tensor([[0], [-1], [1]])},
         "block_table, cache_batch_idx", "-1 to 1"),
        (ValueError, {"rotary_cos": COS}, "rotary_cos, rotary_sin", "together"),
        (ValueError, {"rotary_cos": COS, "rotary_sin": COS, "k": None, "v": None},
         "rotary_cos, rotary_sin", "k and v"),
        (ValueError, {"rotary_cos": torch.ones(40, 5), "rotary_sin": torch.ones(40, 5)},
         "rotary_cos, rotary_sin", "(40, 5)"),
        (ValueError, {"rotary_cos": COS[:6], "rotary_sin": COS[:6]},
         "rotary_cos", "must have 7 places, got 6"),
        (TypeError, {"rotary_cos": [[1.0]], "rotary_sin": COS}, "rotary_cos", "[[1.0]]"),
        (TypeError, {"rotary_interleaved": "no"}, "rotary_interleaved", "'no'"),
        (TypeError, {"q": np.ones((3, 2, 4, 8))}, "q", "numpy.ndarray"),
        (TypeError, {"k_cache": [1.0]}, "k_cache", "[1.0]"),
        (ValueError, {"v": torch.ones(6, 8).to_sparse()}, "v", "sparse"),
        (ValueError, {"k": torch.ones(3)}, "k", "(3,)"),
        (TypeError, {"cache_seqlens": 2.5}, "cache_seqlens", "2.5"),
        (TypeError, {"cache_seqlens": "5"}, "cache_seqlens", "'5'"),
        (TypeError, {"cache_batch_idx": [0, 1, 2]}, "cache_batch_idx", "[0, 1, 2]"),
        (TypeError, {"block_table": [[0], [1], [2]]}, "block_table", "[[0], [1], [2]]"),
        # What only the operator refuses.
        (ValueError, {"q": torch.ones(3, 2, 3, 8)}, "key_cache", "2 heads do not divide 3"),
        (ValueError, {"q": torch.ones(3, 2, 4, 8).half()}, "key_cache", "torch.float16"),
        (ValueError, {"q": torch.ones(3, 2, 4, 9)}, "key_cache", "head dim"),
        (ValueError, {"v_cache": torch.ones(4, 11, 2, 8)}, "value_cache", "(3, 2, 11, 8)"),
        (ValueError, {"alibi_slopes": torch.ones(7)}, "alibi_slopes", "(7,)"),
        (TypeError, {"alibi_slopes": [0.5] * 4}, "alibi_slopes", "[0.5"),
        (ValueError, {"softmax_scale": math.nan}, "softmax_scale", "nan"),
        (TypeError, {"softmax_scale": torch.ones(())}, "softmax_scale", "multiply q"),
        (ValueError, {"window_size": (-5, 0)}, "window_size", "(-5, 0)"),
        (TypeError, {"window_size": (2.0, 0)}, "window_size", "(2.0, 0)"),
        (ValueError, {"softcap": -1.0}, "softcap", "-1.0"),
        (TypeError, {"causal": "no"}, "causal", "'no'"),
        (ValueError, {"sigmoid_bias": math.inf}, "sigmoid_bias", "inf"),
        (ValueError, {"sigmoid_bias": torch.ones(3, 4, 2, 5)}, "bias", "(3, 4, 2, 5)"),
        (ValueError, {"sigmoid_bias": Learned(-1.0, num_heads=3)}, "bias", "3 heads"),
        (ValueError, {"sigmoid_bias": NegLogEffectiveLength((0.5,), 8)}, "bias", "1 slopes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_an_error_names_the_argument(error, wrong, name, mention):
    with pytest.raises(error) as caught:
        flash_attn_with_kvcache(**GOOD | wrong)
    assert str(caught.value).startswith((f"{name} ", f"{name}: "))
    assert mention in str(caught.value)
    assert (GOOD["k_cache"] == 1).all() and (GOOD["v_cache"] == 1).all()


@pytest.mark.parametrize(
    "bias",
    [RowLSE(), NegLogVisible(), Learned(-1.0, num_heads=4), CentredKeys(NegLogVisible())],
    ids=repr,
)
def test_a_bias_of_rows_knows_the_new_tokens(bias):
    caches = {name: torch.randn(4, 12, 2, 8) for name in ("k_cache", "v_cache")}
    out = flash_attn_with_kvcache(**GOOD | caches | {"sigmoid_bias": bias})
    again = {"k": None, "v": None, "cache_seqlens": 7, "sigmoid_bias": bias}
    torch.testing.assert_close(out, flash_attn_with_kvcache(**GOOD | caches | again))


@pytest.mark.parametrize(
    "refused", [{"cache_leftpad": torch.ones(3).int()}, {"return_softmax_lse": True}], ids=list
)
def test_unsupported_arguments_are_refused_by_name(refused):
    with pytest.raises(NotImplementedError, match=f"^{next(iter(refused))}: "):
        flash_attn_with_kvcache(**GOOD, **refused)


@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
def test_steps_of_one_graph_write_the_same_cache(paged):
    table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32) if paged else None
    shape = (4, 32, 2, 16) if paged else (2, 64, 2, 16)

    def step(q, k_cache, v_cache, k, v, lengths):
        return flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=lengths, block_table=table, causal=True,
            sigmoid_bias=BIAS,
        )  # fmt: skip

    torch._dynamo.reset()
    graph = torch.compile(step, fullgraph=True, backend="aot_eager")
    ours, theirs = torch.zeros(2, 2, *shape).double().unbind(0)
    for count in range(3):
        new = random(2, 1, 4, 16), *random(2, 2, 1, 2, 16).unbind(0)
        lengths = torch.tensor([30 + count, 3], dtype=torch.int32)
        actual = graph(new[0], *ours.unbind(0), *new[1:], lengths)
        expected = step(new[0], *theirs.unbind(0), *new[1:], lengths)
        torch.testing.assert_close(actual, expected, **CLOSE)
    assert ours.equal(theirs) and ours.abs().max() > 0


PAGES = torch.tensor([[3, 0], [1, 2], [3, 0]])
ROTARY = {"rotary_cos": COS[:6], "rotary_sin": COS[:6]}
ROOM = "cache_seqlens must leave room for 2 new tokens in a cache of 12"
REFUSED_IN_A_GRAPH = {
    "negative": ({"cache_seqlens": torch.tensor([5, -1, 4])}, f"{ROOM}, got -1 to 5"),
    "full": ({"cache_seqlens": torch.tensor([5, 12, 4])}, f"{ROOM}, got 4 to 12"),
    "one-too-many": ({"cache_seqlens": torch.tensor([5, 11, 4])}, f"{ROOM}, got 4 to 11"),
    "nothing-new": (
        {"cache_seqlens": torch.tensor([5, -1, 4]), "k": None, "v": None},
        "cache_seqlens must leave room for 0 new tokens",
    ),
    "row": ({"cache_batch_idx": torch.tensor([0, -1, 2])}, "block_table, cache_batch_idx:? .*-1"),
    "page": ({"block_table": PAGES.where(PAGES != 1, -1)}, "block_table, cache_batch_idx:? .*-1"),
    "old-page": (
        {"block_table": PAGES.where(PAGES != 1, -1), "cache_seqlens": torch.tensor([12, 13, 14])},
        "block_table: pages must lie in 0 to 3, got -1 to 3",
    ),
    "angles": (ROTARY | {"cache_seqlens": torch.tensor([5, 2, 4])}, "rotary_cos must have 7 pl"),
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "wrong, sentence", REFUSED_IN_A_GRAPH.values(), ids=REFUSED_IN_A_GRAPH.keys()
)
def test_a_graph_refuses_such_numbers_before_it_writes(wrong, sentence, backend):
    caches = {name: torch.ones(4, 12, 2, 8) for name in ("k_cache", "v_cache")}
    arguments = GOOD | caches | {"cache_seqlens": torch.tensor([5, 3, 4])} | wrong
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]

    def step(*tensors):
        return flash_attn_with_kvcache(**arguments | dict(zip(names, tensors, strict=True)))

    torch._dynamo.reset()
    tensors = [arguments[name] for name in names]
    for call in (step, torch.compile(step, fullgraph=True, backend=backend)):
        # Torch's backend "eager" leaves gradients off after any graph of a function under no_grad
        # that raises, also one that only indexes a tensor out of its bounds.
        with torch.no_grad(), pytest.raises(ValueError, match=f"^{sentence}"):
            call(*tensors)
        assert all((cache == 1).all() for cache in caches.values())
