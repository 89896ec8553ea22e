"""The cache stores its tokens, refuses tokens that do not fit, and then stays unchanged."""

import pytest
import torch

from sigmoid_attention.nn import Attention, DecoderLM, KVCache, ModelConfig


def test_append_returns_everything_so_far():
    cache = KVCache(batch=2, num_kv_heads=3, capacity=7, head_dim=4)
    keys, values = torch.randn(2, 2, 3, 6, 4).unbind(0)
    cache.append(keys[:, :, :1], values[:, :, :1])
    cache.append(keys[:, :, 1:4], values[:, :, 1:4])
    all_keys, all_values = cache.append(keys[:, :, 4:], values[:, :, 4:])
    assert cache.length == 6
    assert torch.equal(all_keys, keys) and torch.equal(all_values, values)


def test_overflow_is_refused_and_nothing_is_stored():
    cache = KVCache(batch=1, num_kv_heads=1, capacity=4, head_dim=2)
    cache.append(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    with pytest.raises(ValueError, match=r"3 tokens are stored and 2 are new.*capacity is 4"):
        cache.append(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert cache.length == 3
    keys, _ = cache.append(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 0]


def test_another_batch_or_number_of_heads_is_refused():
    cache = KVCache(batch=2, num_kv_heads=3, capacity=4, head_dim=2)
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(1, 3\)"):
        cache.append(torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))


@pytest.mark.parametrize("wrong", ["key", "value"])
def test_a_key_or_value_of_another_shape_is_refused_and_nothing_is_stored(wrong):
    cache = KVCache(batch=1, num_kv_heads=2, capacity=4, head_dim=3)
    cache.append(torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3))
    new = {"key": torch.zeros(1, 2, 1, 3), "value": torch.zeros(1, 2, 1, 3)}
    with pytest.raises(ValueError, match=rf"^cache: {wrong} must be \(1, 2, 1, 3\), got"):
        cache.append(**new | {wrong: torch.zeros(1, 2, 1, 5)})
    keys, values = cache.append(torch.full((1, 2, 1, 3), 2.0), torch.full((1, 2, 1, 3), 2.0))
    assert cache.length == 2
    assert keys[0, 0, :, 0].tolist() == values[0, 0, :, 0].tolist() == [1, 2]


@pytest.mark.parametrize("size", [2.5, "2", None, True, torch.tensor(1.5)], ids=repr)
@pytest.mark.parametrize("name", ["batch", "num_kv_heads", "capacity", "head_dim"])
def test_sizes_must_be_whole_numbers(name, size):
    sizes = {"batch": 1, "num_kv_heads": 1, "capacity": 1, "head_dim": 1, name: size}
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got"):
        KVCache(**sizes)


@pytest.mark.parametrize("name", ["batch", "num_kv_heads", "capacity", "head_dim"])
def test_sizes_must_be_positive(name):
    sizes = {"batch": 1, "num_kv_heads": 1, "capacity": 1, "head_dim": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        KVCache(**sizes)


def test_reset_forgets_the_tokens():
    cache = KVCache(batch=1, num_kv_heads=1, capacity=2, head_dim=1, dtype=torch.bfloat16)
    cache.append(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1))
    cache.reset()
    keys, _ = cache.append(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert keys.flatten().tolist() == [0] and keys.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_arrays_are_made_as_the_first_tokens_are(dtype):
    cache = KVCache(batch=1, num_kv_heads=2, capacity=3, head_dim=4)
    assert cache.keys is None and cache.values is None
    first = torch.randn(1, 2, 1, 4, dtype=dtype)
    keys, values = cache.append(first, -first)
    assert keys.dtype == values.dtype == dtype
    assert torch.equal(keys, first) and torch.equal(values, -first)
    meta = KVCache(batch=1, num_kv_heads=2, capacity=3, head_dim=4)
    assert meta.append(first.to("meta"), first.to("meta"))[0].is_meta


def test_refused_tokens_allocate_nothing():
    cache = KVCache(batch=1, num_kv_heads=2, capacity=3, head_dim=4)
    with pytest.raises(ValueError, match=r"\(1, 2\), got \(2, 2\)"):
        cache.append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4))
    assert cache.keys is None and cache.length == 0


def test_tokens_of_inference_mode_may_be_followed_by_others():
    cache, token = KVCache(batch=1, num_kv_heads=1, capacity=2, head_dim=1), torch.ones(1, 1, 1, 1)
    with torch.inference_mode():
        cache.append(token, token)
    keys, _ = cache.append(2 * token, token)
    assert keys.flatten().tolist() == [1, 2]


def stored(caches):
    return [cache.length for cache in caches]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"return_statistics": "yes"}, TypeError),
        ({"attn_mask": torch.ones(2, 10, dtype=torch.bool, device="meta")}, ValueError),
    ],
    ids=["return_statistics", "mask on another device"],
)
def test_a_refused_call_of_a_layer_stores_nothing(settings, error):
    layer, x = Attention(16, 4, max_seq_len=32), torch.randn(2, 5, 16)
    cache = layer.new_cache(2, 32)
    layer(x, cache=cache)
    with pytest.raises(error):
        layer(x, cache=cache, **settings)
    assert cache.length == 5
    expected = layer.new_cache(2, 32)
    layer(x, cache=expected)
    torch.testing.assert_close(layer(x, cache=cache), layer(x, cache=expected))


def test_an_implementation_that_cannot_run_stores_nothing():
    layer, x = Attention(16, 4, max_seq_len=32, impl="gluon"), torch.randn(2, 5, 16)
    cache = layer.new_cache(2, 32)
    with pytest.raises(NotImplementedError):
        layer(x, cache=cache)
    assert cache.length == 0


def model_with_two_layers():
    config = ModelConfig(vocab_size=31, dim=16, layers=2, num_heads=2, max_seq_len=16)
    return DecoderLM(config).eval()


@pytest.mark.parametrize(
    ("second", "error", "named"),
    [
        (lambda model: model.new_cache(2, 3)[1], ValueError, "cache: 0 tokens are stored"),
        (lambda model: model.new_cache(3, 16)[1], ValueError, r"cache: made for \(batch, key"),
        (lambda model: None, TypeError, "cache must hold a KVCache for each layer, got None"),
    ],
    ids=["too short", "another batch", "missing"],
)
def test_a_refused_call_of_a_model_stores_nothing_in_any_layer(second, error, named):
    model = model_with_two_layers()
    caches = [model.new_cache(2, 16)[0], second(model)]
    with pytest.raises(error, match=named):
        model(torch.zeros(2, 5, dtype=torch.long), cache=caches)
    assert stored(cache for cache in caches if cache) == [0] * sum(map(bool, caches))


def test_caches_of_different_lengths_are_refused():
    model = model_with_two_layers()
    tokens, caches = torch.zeros(2, 5, dtype=torch.long), model.new_cache(2, 16)
    model(tokens, cache=caches)
    caches[1].length = 3
    with pytest.raises(ValueError, match=r"as many tokens in each layer, got \[3, 5\]"):
        model(tokens, cache=caches)


def test_a_cache_of_whole_numbers_is_refused():
    with pytest.raises(ValueError, match="KVCache: dtype must be floating or None, got"):
        KVCache(1, 2, 8, 4, dtype=torch.int64)


def test_a_dtype_by_name_is_refused():
    with pytest.raises(TypeError, match=r"KVCache: dtype must be a torch\.dtype .*, got 'float32'"):
        KVCache(1, 2, 8, 4, dtype="float32")
