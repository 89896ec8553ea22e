"""Calls that need more memory than is available, or none at all.

Without enough memory a call raises a MemoryError with one sentence, or torch's own error where
torch allocates the output. The process continues.
"""

import os
import sys

import pytest
import torch

from sigmoid_attention.attention import (
    call_cache,
    sigmoid_attention,
    sigmoid_decode,
    sigmoid_varlen_attention,
)
from sigmoid_attention.attention.impl.cpu import abi
from tests.support.cpu.threads import in_a_process

pytestmark = pytest.mark.usefixtures("kernel")

unwatched = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer has an allocator of its own"
)

MANY = 2**32


@pytest.mark.parametrize("missing", ["rows", "value-dim", "rows-and-keys"])
@pytest.mark.parametrize("learning", [False, True], ids=["value", "gradients"])
def test_any_number_of_heads_without_an_answer(missing, learning):
    """An output without elements takes no memory, for any number of heads."""
    rows, keys, value_dim = {"rows": (0, 3, 2), "value-dim": (1, 3, 0)}.get(missing, (0, 0, 2))
    scalar = torch.ones(1, requires_grad=learning)
    heads = MANY if missing != "value-dim" else 2**16
    query, key = scalar.expand(1, heads, rows, 1), scalar.expand(1, heads, keys, 1)
    value = scalar.expand(1, heads, keys, value_dim)
    for terms in ({}, {"attn_mask": torch.ones(1, 1, 1, keys, dtype=torch.bool)}):
        for _ in range(2):
            out = sigmoid_attention(query, key, value, **terms, bias=-1.0, impl="cpu")
            assert out.shape == (1, heads, rows, value_dim)
    # Gradients of 2**32 copies would be as many numbers: those of what has an end are asked for.
    if learning and missing != "rows":
        (grad,) = torch.autograd.grad(out.sum(), scalar)
        assert not grad.any()


@unwatched
@pytest.mark.parametrize("queries", [1, 64], ids=["decoding", "forward"])
@pytest.mark.parametrize("keys", [2**48, 2**56, 2**61])
def test_more_keys_than_any_memory_holds(queries, keys):
    """Copies of one key are as many as one likes; what a kernel makes of them is not."""
    query = torch.ones(1, 2, queries, 1)
    key = torch.ones(1, 1, 1, 1).expand(1, 2, keys, 1)
    with pytest.raises(MemoryError, match=r"^sigmoid attention: not enough memory"):
        sigmoid_attention(query, key, key, bias=-1.0, impl="cpu")


@pytest.mark.parametrize("kind", ["by-key", "by-row", "by-pair", "flags", "slopes"])
def test_no_queries_never_start_the_kernel_with_terms(kind, monkeypatch):
    """What is added by key was written behind the room of no rows."""
    terms = {
        "by-key": {"bias": torch.zeros(1, 1, 1, 200)},
        "by-row": {"bias": torch.zeros(1, 1, 0, 1)},
        "by-pair": {"bias": -1.0, "attn_mask": torch.zeros(0, 200)},
        "flags": {"bias": -1.0, "attn_mask": torch.ones(1, 1, 1, 200, dtype=torch.bool)},
        "slopes": {"bias": -1.0, "alibi_slopes": torch.ones(2)},
    }[kind]
    query, key = torch.ones(3, 2, 0, 8), torch.ones(3, 2, 200, 8)
    for _ in range(3):
        assert sigmoid_attention(query, key, key, **terms).shape == (3, 2, 0, 8)
    if "attn_mask" not in terms:
        used, ends = torch.full((3,), 200), torch.zeros(3, dtype=torch.int64)
        for _ in range(3):
            assert sigmoid_decode(
                query, key, key, seqused_k=used, is_causal=True, **terms
            ).shape == (3, 2, 0, 8)
        tokens = torch.ones(0, 2, 8), torch.ones(200, 2, 8), torch.ones(200, 2, 8)
        keys = torch.tensor([0, 120, 200])
        out = sigmoid_varlen_attention(*tokens, ends, keys, 0, 200, **terms)
        assert out.shape == (0, 2, 8)


def test_a_struct_that_asks_for_nothing_is_answered_by_the_kernel_itself():
    """A remembered call without rows starts the kernel, which writes nothing."""
    before = dict(call_cache._prepared)
    query, key = torch.ones(1, 1, 0, 8), torch.ones(1, 1, 200, 8)
    bias = torch.zeros(1, 1, 1, 200)
    sigmoid_attention(query, key, key, bias=bias)
    (known,) = (call_cache._prepared[kind] for kind in call_cache._prepared if kind not in before)
    assert abi.loaded() is not None
    for _ in range(100):
        assert known((query, key, key, None, None, bias, None, None)).shape == (1, 1, 0, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is only obeyed on Linux")
@unwatched
def test_a_process_survives_when_memory_runs_out():
    """With less and less room to grow, every call answers or raises."""
    words = in_a_process("""
        import ctypes, resource, torch
        from sigmoid_attention import sigmoid_attention, sigmoid_decode
        torch.set_num_threads(1)
        ctypes.CDLL(None).mallopt(-3, 2**16)  # what is larger comes from the system each time
        q, k = torch.randn(1, 1, 1, 8).requires_grad_(), torch.randn(1, 1, 8, 8)
        sigmoid_attention(q, k, k, bias=-1.0).sum().backward()
        def held():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[0]) * resource.getpagesize()
        few, many = torch.randn(64, 512, 1, 1), torch.randn(1, 1, 3000, 64)
        used = torch.tensor([3000])
        calls = [
            lambda: sigmoid_attention(few, few.expand(64, 512, 1, 1), few, bias=-1.0),
            lambda: sigmoid_attention(many, many, many, bias=-1.0),
            lambda: sigmoid_decode(
                many[:, :, :1], many, many, seqused_k=used, bias=-1.0, is_causal=True
            ),
        ]
        calls[0]()
        limits, refused = resource.getrlimit(resource.RLIMIT_AS), 0
        for step in range(20):
            for call in calls:
                room = held() + step * 2**15
                resource.setrlimit(resource.RLIMIT_AS, (room, limits[1]))
                try:
                    call()
                except MemoryError as error:
                    refused += str(error).startswith("sigmoid attention: not enough memory")
                except RuntimeError:
                    pass
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, limits)
        print("lives", refused)
    """)
    lives, refused = words.split()
    assert lives == "lives" and int(refused) > 0
