"""The running sums of keys beside a cache: means, chunks, windows, cropping, beams, old caches.

A decoding step takes the bias of centred keys from one call of the CPU kernel where that is built.
"""

import copy
import io
import pickle

import pytest
import torch

from sigmoid_attention.attention.impl.cpu.abi import available
from sigmoid_attention.nn import Attention, DecoderLM, KVCache, ModelConfig, RoPE

with_kernel = pytest.mark.skipif(not available(), reason="there is no CPU kernel on this machine")
B, G, N, D = 3, 2, 13, 4
LEFT = [-1, 0, 4]
SIZES = {"13": [N], "1x13": [1] * N, "5-1-4-3": [5, 1, 4, 3]}
each_window = pytest.mark.parametrize("left", LEFT, ids="left{}".format)
each_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
PADDED = torch.arange(N) >= torch.tensor([[0], [5], [12]])


def expected_means(key, left, mask=None):
    means = torch.zeros(key.shape, dtype=torch.float64)
    for b in range(len(key)):
        for i in range(key.shape[2]):
            first = 0 if left < 0 else max(0, i - left)
            sees = [j for j in range(first, i + 1) if mask is None or mask[b, j]]
            if sees:
                means[b, :, i] = key[b, :, sees].double().mean(1)
    return means


def read(cache, key, sizes, left=-1, mask=None):
    """The means of all tokens, read in chunks of these sizes."""
    means, end = [], cache.length
    for chunk in key.split(sizes, 2):
        cache.append(chunk, chunk)
        end += chunk.shape[2]
        means.append(cache.key_means(chunk.shape[2], left, None if mask is None else mask[:, :end]))
    return torch.cat(means, 2)


def new_cache(**settings):
    return KVCache(B, G, N, D, **settings)


@each_window
@each_size
@pytest.mark.parametrize("padded", [False, True], ids=["real", "padded"])
def test_means_are_those_of_the_visible_keys(left, sizes, padded):
    key, mask = torch.randn(B, G, N, D), PADDED if padded else None
    if padded:
        key[~PADDED[:, None].expand(B, G, N)] = torch.nan
    means = read(new_cache(), key, sizes, left, mask)
    assert means.dtype == torch.float64
    torch.testing.assert_close(means, expected_means(key, left, mask), atol=1e-12, rtol=0)


@each_size
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_key_that_is_not_finite_leaves_the_window(sizes, bad):
    key = torch.randn(B, G, N, D)
    key[0, 1, 3, 2] = bad
    means = read(new_cache(), key, sizes, left=4)
    wrong = torch.zeros(B, G, N, dtype=torch.bool)
    wrong[0, 1, 3:8] = True
    assert torch.equal(~means.isfinite().all(-1), wrong)
    expected = expected_means(key, 4)
    torch.testing.assert_close(means[~wrong], expected[~wrong], atol=1e-12, rtol=0)


def test_sums_are_those_of_the_stored_dtype():
    key = torch.randn(B, G, N, D)
    means = read(new_cache(dtype=torch.bfloat16), key, 1)
    torch.testing.assert_close(means, expected_means(key.bfloat16(), -1), atol=1e-12, rtol=0)


@with_kernel
@pytest.mark.parametrize("left", [-1, 4], ids="left{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [D, 24], ids="D{}".format)
def test_the_bias_of_one_token_has_its_mean(left, dtype, head_dim):
    heads = 2 * G
    query, key = torch.randn(B, heads, N, head_dim, dtype=dtype), torch.randn(B, G, N, head_dim)
    strength, offset = torch.rand(heads), torch.randn(heads)
    cache = KVCache(B, G, N, head_dim, dtype=dtype)
    found = []
    for row, new in zip(query.split(1, 2), key.split(1, 2), strict=True):
        cache.append(new, new)
        found.append(cache.next_bias(row, 0.5, left, strength, offset))
        if found[-1] is None:
            cache.key_means(1, left)
    # Where the sum of a window is made again, PyTorch computes the step.
    computed = torch.tensor([bias is not None for bias in found])
    assert computed.sum() == {-1: N, 4: N - 2}[left]
    means = expected_means(key.to(dtype), left).repeat_interleave(2, 1)
    products = 0.5 * (query.double() * means).sum(-1, keepdim=True)
    expected = offset[:, None, None] - strength[:, None, None] * products
    found = torch.cat([bias for bias in found if bias is not None], 2)
    torch.testing.assert_close(found, expected[:, :, computed].float(), atol=1e-5, rtol=1e-5)
    sums = cache.key_sums.sum_BG1D / (N if left < 0 else left + 1)
    expected_sums = expected_means(key.to(dtype), left)[:, :, -1:]
    torch.testing.assert_close(sums, expected_sums, atol=1e-12, rtol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_step_sees_a_key_that_is_not_finite_only_in_its_window(bad):
    key = torch.randn(B, G, N, D)
    key[0, 1, 3, 2] = bad
    cache, strength = new_cache(), torch.ones(G)
    for end, new in enumerate(key.split(1, 2)):
        cache.append(new, new)
        query = torch.randn(B, G, 1, D)
        bias = cache.next_bias(query, 1.0, 4, strength, strength)
        if bias is None:
            bias = cache.key_means(1, 4)
        wrong = torch.zeros(B, G, dtype=torch.bool)
        wrong[0, 1] = 3 <= end < 8
        assert torch.equal(~bias.isfinite().flatten(2).all(-1), wrong)


@with_kernel
def test_a_step_leaves_other_calls_to_pytorch():
    cache, strength = new_cache(), torch.ones(G)
    key = torch.randn(B, G, 1, D)
    cache.append(key, key)
    for query, numbers in (
        (key.double(), strength),
        (key.to("meta"), strength),
        (torch.randn(B, G, 1, D + 1), strength),
        (torch.randn(B + 1, G, 1, D), strength),
        (torch.randn(B, G, 2, D), strength),
        (key.clone().requires_grad_(), strength),
        (key, strength.double()),
        (key, strength.clone().requires_grad_()),
        (key, torch.ones(B, G, 1, 1)),
        (key, torch.ones(2 * G)[::2]),
    ):
        assert cache.next_bias(query, 1.0, -1, numbers, strength) is None
        assert cache.next_bias(query, 1.0, -1, strength, numbers) is None or query is key
    assert cache.next_bias(key, 1.0, -1, strength, strength) is not None


@each_window
def test_large_keys_do_not_drift(left):
    tokens = 3000
    key = 1e4 + torch.randn(1, 1, tokens, 2)
    cache = KVCache(1, 1, tokens, 2)
    means = read(cache, key, 1, left)
    width = tokens if left < 0 else left + 1
    expected = key[:, :, tokens - width :].double().mean(2)
    torch.testing.assert_close(means[:, :, -1], expected, atol=1e-9, rtol=0)


@each_window
@pytest.mark.parametrize("padded", [False, True], ids=["real", "padded"])
@pytest.mark.parametrize("length", [0, 1, 7, 12], ids="to{}".format)
def test_cropping_makes_the_sums_again(left, padded, length):
    key, mask = torch.randn(B, G, N, D), PADDED if padded else None
    cache = new_cache()
    read(cache, torch.cat((key[:, :, :length], torch.randn(B, G, N - length, D)), 2), 1, left, mask)
    cache.crop(length)
    assert cache.length == length
    means = read(cache, key[:, :, length:], 3, left, mask)
    expected = expected_means(key, left, mask)[:, :, length:]
    torch.testing.assert_close(means, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("index", [[2, 0, 0], [1], [0, 1, 2, 2, 1]], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["real", "padded"])
def test_rows_are_reordered(index, padded):
    key, mask = torch.randn(B, G, N, D), PADDED if padded else None
    cache, rows = new_cache(), torch.tensor(index)
    read(cache, key[:, :, :6], 2, 4, mask)
    cache.reorder(rows)
    stored = cache.key_sums
    mask = None if mask is None else mask[rows]
    means = read(cache, key[rows][:, :, 6:], 1, 4, mask)
    assert cache.batch == len(rows) and stored is not None and stored.tokens == 6
    expected = expected_means(key[rows], 4, mask)[:, :, 6:]
    torch.testing.assert_close(means, expected, atol=1e-12, rtol=0)
    assert torch.equal(cache.keys, key[rows]) and torch.equal(cache.values, key[rows])


def test_an_empty_cache_is_reordered():
    cache = new_cache()
    cache.reorder(torch.tensor([0, 0]))
    assert cache.batch == 2
    cache.append(torch.ones(2, G, 1, D), torch.ones(2, G, 1, D))


def test_another_window_is_noticed():
    key, cache = torch.randn(B, G, N, D), new_cache()
    read(cache, key[:, :, :9], 2, left=-1)
    means = read(cache, key[:, :, 9:], 1, left=4)
    torch.testing.assert_close(means, expected_means(key, 4)[:, :, 9:], atol=1e-12, rtol=0)


def test_tokens_that_were_stored_without_sums_are_noticed():
    key, cache = torch.randn(B, G, N, D), new_cache()
    read(cache, torch.randn(B, G, 8, D), 8)
    cache.crop(5)
    cache.crop(0)
    cache.append(key[:, :, :8], key[:, :, :8])
    means = read(cache, key[:, :, 8:], 2)
    torch.testing.assert_close(means, expected_means(key, -1)[:, :, 8:], atol=1e-12, rtol=0)


@each_window
@pytest.mark.parametrize("then_reordered", [False, True], ids=["", "reordered"])
def test_keys_that_the_caller_replaced_are_noticed(left, then_reordered):
    """Before caches had `reorder`, beam search had to move the rows itself."""
    key, cache, rows = torch.randn(B, G, N, D), new_cache(), torch.tensor([2, 0, 1])
    read(cache, key[:, :, :9], 2, left)
    cache.keys = cache.keys[rows]
    key = key[rows]
    if then_reordered:
        cache.reorder(rows)
        key = key[rows]
    means = read(cache, key[:, :, 9:], 1, left)
    torch.testing.assert_close(means, expected_means(key, left)[:, :, 9:], atol=1e-12, rtol=0)


def test_a_changed_mask_is_noticed():
    key, cache = torch.randn(B, G, N, D), new_cache()
    read(cache, key[:, :, :6], 2)
    means = read(cache, key[:, :, 6:9], 3, -1, PADDED)
    expected = expected_means(key, -1, PADDED)
    torch.testing.assert_close(means, expected[:, :, 6:9], atol=1e-12, rtol=0)
    mask = PADDED.clone()
    read(cache, key[:, :, 9:10], 1, -1, mask)
    mask[2] = True
    means = read(cache, key[:, :, 10:12], 1, -1, mask)
    expected = expected_means(key, -1, mask)
    torch.testing.assert_close(means, expected[:, :, 10:12], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "length, error",
    [(-1, ValueError), (4, ValueError), (2.5, TypeError), (None, TypeError)],
    ids=str,
)
def test_lengths_that_cannot_be_kept_are_refused(length, error):
    cache = new_cache()
    read(cache, torch.randn(B, G, 3, D), 3)
    with pytest.raises(error, match="length must be a whole number of 0 to 3, the stored tokens"):
        cache.crop(length)
    assert cache.length == 3 and cache.key_sums is not None


@pytest.mark.parametrize(
    "index, error, match",
    [
        ([0, 1], TypeError, "index must be a tensor"),
        (torch.tensor([0.0]), ValueError, "index must be int32 or int64 of shape"),
        (torch.tensor(0), ValueError, "index must be int32 or int64 of shape"),
        (torch.zeros(0, dtype=torch.int64), ValueError, "with one row or more"),
        (torch.tensor([0, 3]), ValueError, "index must hold rows 0 to 2 of the batch, got 0 to 3"),
        (torch.tensor([-1]), ValueError, "index must hold rows 0 to 2"),
        (torch.zeros(1, dtype=torch.int64, device="meta"), ValueError, "on the device of the cac"),
    ],
    ids=["list", "float", "scalar", "empty", "above", "negative", "device"],
)
def test_rows_that_do_not_exist_are_refused(index, error, match):
    cache = new_cache()
    read(cache, torch.randn(B, G, 3, D), 3)
    before = copy.deepcopy(cache)
    with pytest.raises(error, match=match):
        cache.reorder(index)
    assert torch.equal(cache.keys, before.keys) and cache.batch == B


def layer(**settings):
    made = Attention(16, 4, num_kv_heads=G, max_seq_len=N, position=RoPE(), **settings)
    return made.requires_grad_(False)


def test_only_a_centred_layer_keeps_sums():
    x = torch.randn(1, 3, 16)
    for centred in (True, False):
        attention = layer(centred_keys=centred)
        cache = attention.new_cache(1, N)
        attention(x, cache=cache)
        assert (cache.key_sums is not None) == centred


def test_a_cache_that_an_older_version_wrote():
    attention, x = layer(centred_keys=True), torch.randn(1, N, 16)
    cache = attention.new_cache(1, N)
    attention(x[:, :7], cache=cache)
    old = pickle.loads(pickle.dumps(cache))
    vars(old).pop("key_sums")
    buffer = io.BytesIO()
    torch.save(old, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    outputs = torch.cat([attention(part, cache=loaded) for part in x[:, 7:].split(2, 1)], 1)
    torch.testing.assert_close(outputs, attention(x)[:, 7:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_refused_call_leaves_the_answers():
    attention, x = layer(centred_keys=True), torch.randn(1, 8, 16)
    cache = attention.new_cache(1, 9)
    attention(x[:, :5], cache=cache)
    attention(x[:, 5:6], cache=cache)
    attention.impl = "gluon"
    with pytest.raises(NotImplementedError):
        attention(torch.randn(1, 1, 16), cache=cache)
    assert cache.length == 6
    attention.impl = "auto"
    with pytest.raises(ValueError, match="its capacity is 9"):
        attention(x, cache=cache)
    answers = torch.cat([attention(token, cache=cache) for token in x[:, 6:].split(1, 1)], 1)
    torch.testing.assert_close(answers, attention(x)[:, 6:], atol=1e-5, rtol=1e-5)


def test_a_refused_first_call_leaves_the_dtype_open():
    attention, x = layer(centred_keys=True, impl="gluon"), torch.randn(1, 5, 16)
    cache = attention.new_cache(1, 9)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(NotImplementedError):
        attention(x, cache=cache)
    attention.impl = "auto"
    attention(x, cache=cache)
    assert cache.keys.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("padded_before", [False, True], ids=["unmasked-masked", "masked-unmasked"])
def test_a_compiled_layer_notices_that_a_mask_comes_or_goes(padded_before):
    attention, x = layer(centred_keys=True), torch.randn(B, N, 16)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    for first in (attention, compiled):
        cache = attention.new_cache(B, N)
        first(x[:, :6], cache=cache, attn_mask=PADDED[:, :6] if padded_before else None)
        mask = None if padded_before else PADDED
        cache.keys.copy_(attention.project(x, 0, mask)[1])
        actual = compiled(x[:, 6:], cache=cache, attn_mask=mask)
        expected = attention(x, attn_mask=mask)[:, 6:]
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.compile
def test_a_compiled_step_follows_a_padded_prompt():
    attention, x = layer(centred_keys=True), torch.randn(B, N, 16)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    cache = attention.new_cache(B, N)
    attention(x[:, :6], cache=cache, attn_mask=PADDED[:, :6])
    actual = compiled(x[:, 6:], cache=cache, attn_mask=PADDED)
    expected = attention(x, attn_mask=PADDED)[:, 6:]
    real = PADDED[:, 6:]
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


def test_inference_mode_may_be_left():
    attention, x = layer(centred_keys=True), torch.randn(1, 5, 16)
    cache = attention.new_cache(1, 9)
    with torch.inference_mode():
        attention(x, cache=cache)
    attention.requires_grad_(True)
    attention(x[:, :2], cache=cache).sum().backward()
    assert attention.bias.strength.grad.any()


def test_beam_search_by_hand():
    """Caches of two prompts are widened to beams, reordered, and cropped to a common prefix."""
    config = ModelConfig(
        vocab_size=31,
        dim=16,
        layers=2,
        num_heads=2,
        max_seq_len=16,
        position="rope",
        window_size=5,
        centred_keys=True,
        value_residual=True,
    )
    model = DecoderLM(config).eval().requires_grad_(False)
    prompt = torch.randint(31, (2, 7))
    caches = model.new_cache(2, 16)
    model(prompt, cache=caches)
    beams, order = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 3, 2])
    for cache in caches:
        cache.reorder(beams)
    first = torch.randint(31, (4, 1))
    model(first, cache=caches)
    for cache in caches:
        cache.reorder(order)
    second = torch.randint(31, (4, 3))
    actual = model(second, cache=caches)
    whole = torch.cat((torch.cat((prompt[beams], first), 1)[order], second), 1)
    torch.testing.assert_close(actual, model(whole)[:, 8:], atol=1e-5, rtol=1e-5)
    for cache in caches:
        cache.crop(9)
    again = model(second[:, 1:], cache=caches)
    torch.testing.assert_close(again, actual[:, 1:], atol=1e-5, rtol=1e-5)
