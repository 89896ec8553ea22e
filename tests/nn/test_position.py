"""Position encodings: slopes, rotation, sinusoids, jitter, and positions of padded tokens."""

import math

import pytest
import torch

from sigmoid_attention.nn import (
    CAPE,
    ALiBi,
    Attention,
    AttentionPosition,
    EmbeddingPosition,
    LearnedPosition,
    RoPE,
    RoPEWithALiBi,
    SinCos,
    alibi_slopes,
)
from sigmoid_attention.nn.position import token_positions

PARAMETER = torch.nn.Parameter(torch.ones(3))
CPU = torch.device("cpu")


def slopes_by_recursion(heads):
    """The published rule, written as a recursion over powers of two."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (h + 1) / heads) for h in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return slopes_by_recursion(lower) + slopes_by_recursion(2 * lower)[0::2][: heads - lower]


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 32])
def test_slopes_follow_the_published_rule(heads):
    expected = torch.tensor(slopes_by_recursion(heads))
    torch.testing.assert_close(alibi_slopes(heads), expected)
    torch.testing.assert_close(ALiBi().slopes(heads, "cpu"), expected)


def test_slopes_on_a_named_device_ignore_the_default_device():
    with torch.device("meta"):
        assert alibi_slopes(3, "cpu").device.type == "cpu"


@pytest.mark.parametrize("start", [0, 3])
def test_positions_without_mask_count_from_the_cache(start):
    assert token_positions(2, 4, start, None, CPU).tolist() == [list(range(start, start + 4))]


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[False, False, True, True, True], [True, True, True, True, True]])
    assert token_positions(2, 5, 0, mask, CPU).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert token_positions(2, 2, 3, mask, CPU).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 5), torch.ones(2, 4).bool(), torch.ones(1, 5).bool()], ids=str
)
def test_positions_refuse_a_mask_of_another_kind(mask):
    with pytest.raises(ValueError, match="attn_mask must be boolean of shape"):
        token_positions(2, 2, 3, mask, CPU)


@pytest.mark.parametrize("D", [2, 6, 16])
def test_rope_scores_depend_on_distance_only(D):
    query, key = torch.randn(2, 1, 3, 1, D, dtype=torch.float64).unbind(0)
    near = RoPE().rotate(query, key, torch.tensor([[7]]))
    far = RoPE().rotate(query, key, torch.tensor([[1003]]))
    base = RoPE().rotate(query, key, torch.tensor([[3]]))
    distant = RoPE().rotate(query, key, torch.tensor([[999]]))
    torch.testing.assert_close((near[0] * base[1]).sum(-1), (far[0] * distant[1]).sum(-1))


def test_rope_rotates_pairs_of_channels_as_complex_numbers():
    D, positions = 6, torch.tensor([[0, 1, 5]])
    query = torch.randn(2, 3, 3, D, dtype=torch.float64)
    frequency = 10_000.0 ** (-torch.arange(D // 2, dtype=torch.float64) * 2 / D)
    turn = torch.polar(torch.ones(3, D // 2).double(), positions[0, :, None] * frequency)
    expected = torch.view_as_real(torch.complex(query[..., :3], query[..., 3:]) * turn)
    turned, _ = RoPE().rotate(query, query, positions)
    torch.testing.assert_close(turned, torch.cat(expected.unbind(-1), -1), atol=1e-6, rtol=1e-6)


def test_rope_keeps_the_dtype_and_its_precision_in_bf16():
    query = torch.randn(1, 1, 4, 8)
    positions = torch.arange(1000, 1004)[None]
    exact, _ = RoPE().rotate(query.bfloat16().float(), query, positions)
    turned, _ = RoPE().rotate(query.bfloat16(), query.bfloat16(), positions)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, exact.bfloat16(), rtol=0, atol=0)


def test_rope_refuses_an_odd_head():
    with pytest.raises(ValueError, match=r"even, .*got 5"):
        RoPE().check(5)


@pytest.mark.parametrize(
    "heads, chosen",
    [
        ("half", [True, False, True, False, True]),
        ((False, False, True, True, True), [False, False, True, True, True]),
        ([False] * 5, [False] * 5),
    ],
    ids=str,
)
def test_chosen_heads_keep_their_slopes_beside_the_rotation(heads, chosen):
    position = RoPEWithALiBi(base=500.0, heads=heads)
    expected = torch.where(torch.tensor(chosen), torch.tensor(slopes_by_recursion(5)), 0.0)
    slopes = position.slopes(5, "cpu")
    assert slopes.dtype == torch.float32 and slopes.shape == (5,)
    torch.testing.assert_close(slopes, expected, atol=0, rtol=0)
    assert position.slope_numbers(5) == tuple(expected.tolist())
    query, key = torch.randn(2, 1, 5, 3, 4).unbind(0)
    places = torch.tensor([[4, 5, 6]])
    turned, rope = position.rotate(query, key, places), RoPE(500.0).rotate(query, key, places)
    assert all(map(torch.equal, turned, rope))


def test_a_choice_for_another_number_of_heads_is_refused():
    position = RoPEWithALiBi(heads=(True, False))
    assert Attention(8, 2, max_seq_len=4, position=position)(torch.randn(1, 3, 8)).shape == (
        1,
        3,
        8,
    )
    with pytest.raises(ValueError, match="heads must be for the 4 heads of the layer, got 2"):
        Attention(8, 4, max_seq_len=4, position=position)
    with pytest.raises(ValueError, match="RoPE: dim must be even"):
        Attention(6, 2, max_seq_len=4, position=position)


def test_slopes_of_chosen_heads_under_a_default_device():
    with torch.device("meta"):
        assert RoPEWithALiBi().slopes(3, "cpu").device.type == "cpu"
        assert RoPEWithALiBi().slopes(3, "meta").is_meta


@pytest.mark.parametrize(
    "heads, error",
    [
        ("all", ValueError),
        (None, TypeError),
        (2, TypeError),
        (("yes",), TypeError),
        ((2,), ValueError),
    ],
    ids=str,
)
def test_a_wrong_choice_of_heads_is_refused(heads, error):
    with pytest.raises(error, match="RoPEWithALiBi: heads must be "):
        RoPEWithALiBi(heads=heads)


def test_sincos_is_the_published_table():
    dim, places = 6, 9
    table = SinCos(dim, scale=1.0)(torch.zeros(1, places, dim), torch.arange(places)[None])[0]
    for p in range(places):
        for i in range(dim // 2):
            angle = p / 10_000 ** (2 * i / dim)
            assert table[p, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert table[p, dim // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_cape_is_plain_at_evaluation_and_jittered_within_its_ranges_in_training():
    x, positions = torch.zeros(64, 5, 8), torch.arange(5)[None]
    cape = CAPE(8, max_shift=0.0, max_local_shift=0.25, max_scale=1.0)
    torch.testing.assert_close(cape.eval()(x, positions), SinCos(8)(x, positions))
    jittered = cape.train()(x, positions)
    # The slowest channel is nearly linear, so it can be read back as a position.
    slowest = 10_000.0 ** (-6 / 8)
    read_back = torch.asin(jittered[..., 3] / 8**-0.5) / slowest
    shift = read_back - positions
    assert shift.abs().max() <= 0.2501
    assert shift.min() < -0.2 and shift.max() > 0.2


def test_cape_shift_and_scale_are_shared_by_a_sequence():
    x, positions = torch.zeros(32, 4, 8), torch.arange(4)[None]
    shifted = CAPE(8, max_shift=2.0, max_local_shift=0.0, max_scale=1.0).train()(x, positions)
    slowest = 10_000.0 ** (-6 / 8)
    read_back = torch.asin(shifted[..., 3] / 8**-0.5) / slowest
    shift = read_back - positions
    torch.testing.assert_close(shift, shift[:, :1].expand(-1, 4), atol=1e-3, rtol=0)
    assert shift[:, 0].std() > 0.5


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: SinCos(7), "SinCos: dim must be even, .*got 7"),
        (lambda: CAPE(7), "CAPE: dim must be even, .*got 7"),
        (lambda: CAPE(8, max_shift=-1.0), "max_shift"),
        (lambda: CAPE(8, max_scale=0.5), "max_scale"),
        (lambda: LearnedPosition(8, 0), "max_length must be positive, got 0"),
        (lambda: alibi_slopes(0), "num_heads must be positive, got 0"),
        (lambda: SinCos(8, base=0.0), "SinCos: base must be positive, got 0.0"),
        (lambda: SinCos(8, scale=math.inf), "SinCos: scale must be finite, got inf"),
        (lambda: CAPE(8, max_shift=math.nan), "CAPE: max_shift must be 0 or more, got nan"),
        (lambda: CAPE(8, max_scale=math.inf), "CAPE: max_scale must be 1 or more, got inf"),
        (lambda: RoPE(0), "RoPE: base must be positive, got 0"),
        (lambda: RoPE(math.nan), "RoPE: base must be positive, got nan"),
        (lambda: RoPE(math.inf), "RoPE: base must be positive, got inf"),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "",
)
def test_wrong_values_are_refused(make, match):
    with pytest.raises(ValueError, match=match) as refused:
        make()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: LearnedPosition(8.5, 4), "dim must be a whole number, got 8.5"),
        (lambda: SinCos(8.0), "SinCos: dim must be a whole number, got 8.0"),
        (lambda: SinCos("8"), "SinCos: dim must be a whole number, got the string '8'"),
        (lambda: SinCos(8, base=None), "SinCos: base must be a number, got None"),
        (lambda: SinCos(8, scale=PARAMETER), "SinCos: scale must be a number, got a Parameter"),
        (lambda: CAPE(8, base="1"), "CAPE: base must be a number, got the string '1'"),
        (lambda: CAPE(8, max_local_shift=None), "CAPE: max_local_shift must be a number, got None"),
        (lambda: CAPE(8, max_scale=PARAMETER), "CAPE: max_scale must be a number, got a Param"),
        (lambda: RoPE("10000"), "RoPE: base must be a number, got the string '10000'"),
        (lambda: RoPE(PARAMETER), "RoPE: base must be a number, got a Parameter of shape"),
    ],
    ids=lambda x: x[:24] if isinstance(x, str) else "",
)
def test_wrong_types_are_refused(make, match):
    with pytest.raises(TypeError, match=match) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_learned_table_is_looked_up_and_trained():
    position = LearnedPosition(4, max_length=6)
    x = torch.zeros(2, 3, 4)
    out = position(x, torch.tensor([[0, 1, 5]]))
    assert out[1, 2].equal(position.table.weight[5])
    out.sum().backward()
    assert position.table.weight.grad.count_nonzero() == 3 * 4


def test_the_bases_do_nothing():
    x = torch.randn(1, 2, 4)
    assert EmbeddingPosition()(x, torch.tensor([[0, 1]])) is x
    query, key = torch.randn(2, 1, 1, 2, 4).unbind(0)
    rotated = AttentionPosition().rotate(query, key, torch.tensor([[0, 1]]))
    assert rotated[0] is query and rotated[1] is key
