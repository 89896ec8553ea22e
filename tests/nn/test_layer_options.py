"""Every combination of a layer's options is its formulas: in one pass, cached and under padding.

B = 2 sequences of N = 9 tokens, with 4 query heads on 2 key heads of 6 channels.
"""

import copy
import io
import itertools
import math

import pytest
import torch
from torch.func import functional_call

from sigmoid_attention.attention import (
    BiasPolicy,
    CentredKeys,
    Learned,
    LearnedCentring,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
)
from sigmoid_attention.nn import Attention, Gate, RoPEWithALiBi, StateBias, layer_options
from sigmoid_attention.nn.mass_exponent import MassExponent
from sigmoid_attention.theory.regularity import Ball, attention_bound
from tests.support.nn.layer_oracle import defined

B, N, C, H, G, D = 2, 9, 10, 4, 2, 6
TOLERANCE = {
    # The frequencies of rotations are rounded to fp32.
    torch.float64: dict(atol=1e-7, rtol=1e-6),
    torch.float32: dict(atol=2e-5, rtol=1e-4),
}
SWITCHES = {
    f"{'centred' * centred or 'plain'}-{'state' * state or 'b'}-{gate}-{'residual' * residual}": {
        "centred_keys": centred,
        "state_bias": state,
        "gate": gate,
        "value_residual": residual,
    }
    for centred, state, gate, residual in itertools.product(
        (True, False), (True, False), (None, "head", "element"), (True, False)
    )
}
each_combination = [
    pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES.keys()),
    pytest.mark.parametrize("exponent", [None, 0.7, "learned"], ids="mass^{}".format),
    pytest.mark.parametrize("window", [None, 3], ids="window-{}".format),
    pytest.mark.parametrize("dtype", TOLERANCE, ids=str),
]


def combined(test):
    for mark in each_combination:
        test = mark(test)
    return test


def make(dtype=torch.float64, **settings) -> Attention:
    """A layer whose parameters are away from their start."""
    settings = dict(num_kv_heads=G, head_dim=D, position=RoPEWithALiBi(), bias=-1.5) | settings
    layer = Attention(C, H, max_seq_len=16, **settings).to(dtype)
    for name, parameter in layer.named_parameters():
        if not name.startswith(("query", "key", "value.", "output")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return layer


def inputs(layer, dtype=torch.float64):
    """x, and values of another layer where the layer mixes them with its own."""
    x = torch.randn(B, N, C, dtype=dtype)
    wanted = layer.value_residual is not None
    return x, torch.randn(B, G, N, D, dtype=dtype) if wanted else None


def part(first_value, start, stop):
    return None if first_value is None else first_value[:, :, start:stop]


def gamma(exponent):
    return exponent if isinstance(exponent, float) else None


@combined
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_one_pass(switches, exponent, window, dtype, causal):
    sides = (-1, -1) if window is None else (window, 0 if causal else 1)
    layer = make(dtype, **switches, mass_exponent=exponent, is_causal=causal, window_size=sides)
    x, first = inputs(layer, dtype)
    out, value = layer(x, first_value=first, return_value=True)
    expected, own = defined(layer, x, first_value=first, b=-1.5, gamma=gamma(exponent))
    torch.testing.assert_close(out, expected.to(dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(value, own.to(dtype), **TOLERANCE[dtype])


@combined
@pytest.mark.parametrize("sizes", [[1] * N, [4, 1, 3, 1]], ids=["1x9", "4-1-3-1"])
@torch.no_grad()
def test_with_a_cache_and_left_padding(switches, exponent, window, dtype, sizes):
    """The padded keys are NaN."""
    sides = (-1, -1) if window is None else (window, 0)
    layer = make(dtype, **switches, mass_exponent=exponent, window_size=sides)
    x, first = inputs(layer, dtype)
    real = torch.arange(N) >= torch.tensor([[0], [5]])
    expected, _ = defined(layer, x, real, first, b=-1.5, gamma=gamma(exponent))
    cache, outputs, start = layer.new_cache(B, N), [], 0

    def break_padded_keys(_, args, key_BNC):
        there = real[:, start : start + key_BNC.shape[1], None]
        return key_BNC.masked_fill(~there, math.nan)

    layer.key.register_forward_hook(break_padded_keys)
    for chunk in x.split(sizes, 1):
        stop = start + chunk.shape[1]
        outputs.append(
            layer(
                chunk,
                cache=cache,
                attn_mask=real[:, :stop],
                first_value=part(first, start, stop),
            )
        )
        start = stop
    cached, start = torch.cat(outputs, 1), 0
    padded = layer(x, attn_mask=real, first_value=first)
    torch.testing.assert_close(cached[real], expected[real].to(dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(padded[real], expected[real].to(dtype), **TOLERANCE[dtype])


ALL = dict(
    centred_keys=True, state_bias=True, gate="element", value_residual=True, mass_exponent="learned"
)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_derivatives_of_all_options(causal):
    layer = make(**ALL, is_causal=causal)
    x, first = inputs(layer)
    parameters = dict(layer.named_parameters())

    def answer(x, first_value, *values):
        given = dict(zip(parameters, values, strict=True))
        return functional_call(layer, given, (x[:1, :4],), {"first_value": first_value[:1, :, :4]})

    values = [parameter.detach().requires_grad_() for parameter in parameters.values()]
    assert first is not None
    arguments = (x.requires_grad_(), first.requires_grad_(), *values)
    assert torch.autograd.gradcheck(answer, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(answer, arguments, fast_mode=True)


def test_all_options_learn_from_one_step():
    layer = make(torch.float32, **ALL)
    x, first = inputs(layer, torch.float32)
    layer(x, first_value=first).square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_the_start_is_the_layer_without_options():
    """Except for the share of the first layer's values, which starts at a half."""
    torch.manual_seed(3)
    plain = Attention(8, H, max_seq_len=16)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with_options = Attention(8, H, max_seq_len=16, state_bias=True, gate="element", mass_exponent=0)
    assert torch.get_rng_state().equal(after)
    x = torch.randn(B, N, 8)
    torch.testing.assert_close(with_options(x), plain(x))


@pytest.mark.parametrize(
    "bias, start",
    [
        (-3.0, [-3.0] * 4),
        (NegLogLength(7, -1.0), [-1 - math.log(7)] * 4),
        (NegLogEffectiveLength((0.0, 0.5, 0.0, 0.1), 9), None),
        (Learned(-2.5, 4), [-2.5] * 4),
    ],
    ids=["number", "length", "effective", "learned"],
)
def test_the_state_bias_starts_at_the_bias(bias, start):
    layer = Attention(8, 4, max_seq_len=9, bias=bias, state_bias=True, centred_keys=True)
    assert isinstance(layer.bias, LearnedCentring) and isinstance(layer.bias.bias, StateBias)
    expected = torch.tensor(bias.values if start is None else start)
    torch.testing.assert_close(layer.bias.bias.offset.detach(), expected)
    assert layer.bias.bias.slope is None


@pytest.mark.parametrize("option", ["centred_keys", "state_bias", "mass_exponent"])
def test_a_softmax_ignores_an_option_and_says_so_once(option):
    layer_options._warn_without_effect.cache_clear()
    setting = {option: 1.0 if option == "mass_exponent" else True}
    with pytest.warns(UserWarning, match=rf"^{option}: has no effect on softmax attention") as said:
        layers = [Attention(8, 2, max_seq_len=8, activation="softmax", **setting) for _ in "ab"]
    assert len(said) == 1 and said[0].filename == __file__
    plain = Attention(8, 2, max_seq_len=8, activation="softmax")
    assert {*layers[0].state_dict()} == {*plain.state_dict()}


@pytest.mark.parametrize("gate", ["head", "element"])
def test_a_softmax_has_gate_and_value_residual(gate):
    layer = make(activation="softmax", gate=gate, value_residual=True)
    x, first = inputs(layer)
    gates = layer.gate(x)
    plain = make(activation="softmax")
    plain.load_state_dict(layer.state_dict(), strict=False)
    query, key, value = plain.project(x, 0, None)
    mixed = layer.value_residual(value, first)
    out = plain._operate(query, key, mixed, None, None, 0.0) * gates
    expected = plain.output(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, first_value=first), expected)
    assert gates.shape == (B, H, N, 1 if gate == "head" else D)


def test_rows_that_see_no_key_are_exact_zeros_with_finite_gradients():
    layer = make(torch.float32, **ALL, is_causal=True)
    x, first = inputs(layer, torch.float32)
    real = torch.arange(N) >= torch.tensor([[0], [N]])
    out = layer(x.requires_grad_(), attn_mask=real, first_value=first)
    assert not out[1].any()
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [-16.0, -50.0], ids="bias{}".format)
def test_rows_of_small_mass_keep_output_and_gradients(dtype, bias):
    layer = Attention(8, 2, max_seq_len=8, bias=bias, mass_exponent="learned").to(dtype)
    x = torch.randn(2, 5, 8, dtype=dtype, requires_grad=True)
    exact, wide = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    expected = exact(wide)
    out = layer(x)
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad.double(), wide.grad, atol=tolerance, rtol=tolerance)
    assert layer.mass_exponent.exponent.grad.isfinite().all()


@pytest.mark.parametrize("exponent", [1.0, 0.5], ids="mass^{}".format)
def test_a_mass_below_the_least_counts_as_the_least(exponent):
    mass = torch.tensor([[[1e-20, 1e-30, 1e-31, 1e-35, 0.0]]])
    out = mass[..., None].expand(1, 1, 5, 3)
    divided = MassExponent(exponent, num_heads=1)(out, mass)
    least = mass.double().clamp(min=1e-30) ** exponent
    expected = (mass.double() / least)[..., None].expand(1, 1, 5, 3)
    torch.testing.assert_close(divided.double(), expected, atol=0, rtol=1e-4)


def test_weights_are_divided_by_the_mass():
    layer = Attention(8, 2, max_seq_len=8, mass_exponent=1.0, gate="head", centred_keys=True)
    sums = layer.weights(torch.randn(1, 5, 8)).sum(-1)
    torch.testing.assert_close(sums, torch.ones(1, 2, 5))


def test_statistics_are_those_of_the_centred_logits():
    layer = make(torch.float32, **ALL)
    x, first = inputs(layer, torch.float32)
    answer = layer(x, first_value=first, return_statistics=True, return_value=True)
    out, statistics, value = answer
    layer.mass_exponent = None
    torch.testing.assert_close(layer.weights(x).sum(-1), statistics.mass)
    assert value.shape == (B, G, N, D) and out.shape == x.shape


def test_copies_saved_layers_and_meta_layers():
    layer, buffer = make(torch.float32, **ALL), io.BytesIO()
    x, first = inputs(layer, torch.float32)
    torch.save(layer, buffer)
    buffer.seek(0)
    with torch.device("meta"):
        empty = Attention(C, H, max_seq_len=16, num_kv_heads=G, head_dim=D, bias=-1.5, **ALL)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(layer.state_dict(), assign=True)
    empty.position = layer.position
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False), empty):
        assert torch.equal(other(x, first_value=first), layer(x, first_value=first))


def test_numbers_a_head_stay_in_fp32():
    layer = make(torch.bfloat16, **ALL)
    kept = {name for name, p in layer.named_parameters() if p.dtype == torch.float32}
    assert kept == {
        "bias.strength",
        "bias.bias.offset",
        "bias.bias.weight",
        "mass_exponent.exponent",
        "value_residual.share",
    }
    x, first = inputs(layer, torch.bfloat16)
    out = layer(x, first_value=first)
    assert out.dtype == torch.bfloat16
    wide = copy.deepcopy(layer).double()
    expected = wide(x.double(), first_value=first.double())
    torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0.05)


def test_autocast():
    layer = make(torch.float32, **ALL)
    x, first = inputs(layer, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = layer(x, first_value=first.bfloat16(), return_value=True)[1]
        out = layer(x, first_value=first.bfloat16())
    assert out.dtype == value.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x, first_value=first), atol=0.05, rtol=0.05)


def test_repr_shows_the_options():
    text = repr(make(torch.float32, **ALL))
    for shown in (
        "(bias): LearnedCentring",
        "(bias): StateBias(heads=4, dim=10, log_visible=Fal",
        "(gate): Gate(element, dim=10, num_heads=4)",
        "ValueResidual",
        "Exponent(learned)",
    ):
        assert shown in text, text


@pytest.mark.parametrize("inside", [True, False], ids=["in centring", "alone"])
def test_a_given_policy_with_an_input_gets_it(inside):
    """A bias of the caller, in place of the layer's options."""
    torch.manual_seed(0)
    state = StateBias(torch.full((H,), -1.5), C, log_visible=False)
    layer = make(bias=LearnedCentring(state, H) if inside else state)
    other = make(centred_keys=inside, state_bias=True)
    other.load_state_dict(layer.state_dict())
    x, _ = inputs(layer)
    assert torch.equal(layer(x), other(x))


class OfTheCaller(BiasPolicy):
    def __init__(self, resolve):
        self.resolve = resolve


def test_a_policy_of_the_caller_may_read_the_logits_beside_a_cache():
    policy = OfTheCaller(lambda rows: 0.1 * rows.row_lse() - 2)
    layer = make(torch.float32, bias=policy, centred_keys=True, window_size=(3, 0))
    x, _ = inputs(layer, torch.float32)
    cache = layer.new_cache(B, N)
    with torch.no_grad():
        outputs = torch.cat([layer(part, cache=cache) for part in x.split((4, 1, 1, 3), 1)], 1)
        torch.testing.assert_close(outputs, layer(x), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize(
    "result, error, match",
    [
        ("x", TypeError, "bias: OfTheCaller.resolve must return a number or a tensor"),
        (torch.zeros(1), ValueError, "bias: a vector must have a number for each head"),
        (torch.zeros(H).long(), ValueError, "bias must be floating"),
    ],
    ids=["text", "vector", "int"],
)
def test_results_of_a_policy_of_the_caller_are_checked(cached, result, error, match):
    layer = make(torch.float32, bias=OfTheCaller(lambda rows: result), centred_keys=True)
    x, _ = inputs(layer, torch.float32)
    cache = layer.new_cache(B, N) if cached else None
    with pytest.raises(error, match=match):
        layer(x, cache=cache)
    assert cache is None or cache.length == 0


def test_a_given_strength_reaches_a_cache():
    layer = make(torch.float32, bias=CentredKeys(-1.5, 0.5))
    x, _ = inputs(layer, torch.float32)
    cache = layer.new_cache(B, N)
    with torch.no_grad():
        outputs = torch.cat([layer(token, cache=cache) for token in x.split(1, 1)], 1)
        torch.testing.assert_close(outputs, layer(x), **TOLERANCE[torch.float32])
    assert cache.key_sums is not None


@pytest.mark.parametrize(
    "settings, error, match",
    [
        (dict(centred_keys="yes"), TypeError, "centred_keys must be True or False, got the string"),
        (dict(state_bias=None), TypeError, "state_bias must be True or False, got None"),
        (dict(value_residual=2), ValueError, "value_residual must be True or False"),
        (
            dict(gate="heads"),
            ValueError,
            r"gate must be one of \(None, 'head', 'element'\), got 'h",
        ),
        (dict(gate=True), TypeError, "gate must be one of"),
        (
            dict(mass_exponent="learnt"),
            ValueError,
            "mass_exponent must be a finite number, 'learned",
        ),
        (dict(mass_exponent=math.nan), ValueError, "mass_exponent must be a finite number"),
        (
            dict(mass_exponent=torch.ones(2)),
            TypeError,
            "mass_exponent must be a number, got a tenso",
        ),
        (
            dict(state_bias=True, bias=NegLogVisible()),
            TypeError,
            "bias with state_bias must be a number, .* got NegLogVisible, which depends",
        ),
        (
            dict(centred_keys=True, bias=LearnedCentring(-1.0, 2)),
            ValueError,
            "bias must not remove the common part",
        ),
    ],
    ids=str,
)
def test_bad_options(settings, error, match):
    with pytest.raises(error, match=match):
        Attention(8, 2, max_seq_len=8, **settings)
    if "bias" not in settings:
        with pytest.raises(error, match=match):
            Attention(8, 2, max_seq_len=8, activation="softmax", **settings)


@pytest.mark.parametrize(
    "first_value, error, match",
    [
        (None, ValueError, "first_value must be given to a layer with value_residual"),
        (
            torch.zeros(B, G, N - 1, D),
            ValueError,
            r"first_value must be like .* \(2, 2, 9, 6\), got",
        ),
        (torch.zeros(B, G, N, D).half(), ValueError, "got torch.float16 of shape"),
        (3, TypeError, "first_value must be a tensor"),
    ],
    ids=["missing", "shape", "dtype", "number"],
)
def test_bad_first_values_write_nothing(first_value, error, match):
    layer = make(torch.float32, **ALL)
    x, _ = inputs(layer, torch.float32)
    cache = layer.new_cache(B, N)
    with pytest.raises(error, match=match):
        layer(x, cache=cache, first_value=first_value)
    assert cache.length == 0 and cache.key_sums is None


def test_first_values_for_a_layer_without_residual_are_refused():
    layer = make(torch.float32)
    x, _ = inputs(layer, torch.float32)
    with pytest.raises(ValueError, match="first_value: this layer has no value_residual"):
        layer(x, first_value=torch.zeros(B, G, N, D))


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(centred_keys=True), "CentredKeys"),
        (dict(state_bias=True), "StateBias"),
        (dict(gate="head"), "gate"),
        (dict(value_residual=True), "value_residual"),
        (dict(mass_exponent="learned"), "mass_exponent"),
    ],
    ids=str,
)
def test_bounds_refuse_what_they_do_not_follow(settings, named):
    with pytest.raises(ValueError, match=f"{named}.* no bound here follows"):
        attention_bound(Attention(8, 2, max_seq_len=8, **settings), Ball(1.0), 4)


def test_a_gate_is_two_sigmoids():
    gate = Gate("element", dim=3, num_heads=2, head_dim=4)
    assert gate(torch.randn(2, 5, 3)).eq(1).all()
    torch.nn.init.normal_(gate.weight)
    x = torch.randn(1, 1, 3)
    expected = 2 / (1 + torch.exp(-(gate.weight @ x[0, 0])))
    torch.testing.assert_close(gate(x).flatten(), expected)
