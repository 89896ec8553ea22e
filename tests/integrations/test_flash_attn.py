"""flash-attn's interface with a sigmoid: argument order, layout and meaning."""

import inspect
import math

import numpy as np
import pytest
import torch

from sigmoid_attention import Learned, NegLogLength, NegLogVisible
from sigmoid_attention.integrations import flash_attn, flash_sigmoid
from tests.support.attention.token_major_oracle import attend, distances, weights

CLOSE = {"rtol": 1e-11, "atol": 1e-13}


def random(*shape, grad=False):
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


def dense(B=2, S=5, K=7, H=4, G=2, D=6, E=6, grad=False):
    return (
        random(B, S, H, D, grad=grad),
        random(B, K, G, D, grad=grad),
        random(B, K, G, E, grad=grad),
    )


class TestDense:
    @pytest.mark.parametrize("S, K", [(5, 5), (3, 7), (7, 3), (1, 9)])
    @pytest.mark.parametrize("window", [(-1, -1), (2, -1), (1, 2), (0, 0)])
    @pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
    def test_causality_and_window_are_aligned_bottom_right(self, S, K, window, causal):
        q, k, v = dense(S=S, K=K)
        behind = distances(S, K)
        visible = torch.ones(S, K, dtype=torch.bool)
        if window[0] >= 0:
            visible &= behind <= window[0]
        if window[1] >= 0:
            visible &= behind >= -window[1]
        if causal:
            visible &= behind >= 0
        out = flash_attn.flash_attn_func(
            q, k, v, causal=causal, window_size=window, sigmoid_bias=-1.25
        )
        torch.testing.assert_close(out, attend(q, k, v, -1.25, visible=visible), **CLOSE)

    @pytest.mark.parametrize(
        "written, window",
        [
            ((None, None), (-1, -1)),
            ((3, None), (3, -1)),
            (torch.tensor([3, 1]), (3, 1)),
            (torch.tensor([3, 1]).int().unbind(), (3, 1)),
            (np.array([3, -1]), (3, -1)),
            ([2, 0], (2, 0)),
        ],
        ids=str,
    )
    def test_a_window_as_others_write_it(self, written, window):
        q = random(2, 7, 4, 6)
        cache, lengths = random(2, 9, 4, 6), torch.tensor([7, 5])
        for call in (
            lambda window: flash_attn.flash_attn_func(
                q, q, q, window_size=window, sigmoid_bias=-1.0
            ),
            lambda window: flash_attn.flash_attn_with_kvcache(
                q[:, :2], cache, cache, cache_seqlens=lengths, window_size=window, sigmoid_bias=-1.0
            ),
        ):
            assert torch.equal(call(written), call(window))

    def test_a_query_that_sees_nothing_returns_zeros(self):
        q, k, v = dense(S=7, K=3)
        out = flash_attn.flash_attn_func(q, k, v, causal=True, sigmoid_bias=0.0)
        assert not out[:, :4].any()
        assert out[:, 4:].all()

    @pytest.mark.parametrize("per", ["H", "BH"])
    def test_alibi_counts_the_full_distance_and_learns(self, per):
        q, k, v = dense()
        slopes = random(*((4,) if per == "H" else (2, 4))).abs().requires_grad_()
        out = flash_attn.flash_attn_func(q, k, v, alibi_slopes=slopes, sigmoid_bias=-1.0)
        bias = -1.0 - slopes[..., None, None] * distances(5, 7).abs()
        expected = attend(q, k, v, bias)
        torch.testing.assert_close(out, expected, **CLOSE)
        direction = torch.randn_like(out)
        (actual,) = torch.autograd.grad((out * direction).sum(), slopes)
        torch.testing.assert_close(
            actual, torch.autograd.grad((expected * direction).sum(), slopes)[0], **CLOSE
        )

    @pytest.mark.parametrize("softcap", [0.0, 0.7])
    def test_softcap_of_zero_is_none(self, softcap):
        q, k, v = dense()
        out = flash_attn.flash_attn_func(q, k, v, 0.0, 2.0, softcap=softcap, sigmoid_bias=0.5)
        torch.testing.assert_close(out, attend(q, k, v, 0.5, scale=2.0, softcap=softcap), **CLOSE)

    @pytest.mark.parametrize(
        "shape", [(), (4,), (2, 4), (4, 1, 1), (2, 1, 5, 1), (1, 1, 1, 7)], ids=str
    )
    def test_a_tensor_of_biases_learns(self, shape):
        q, k, v = dense(grad=True)
        bias = random(*shape, grad=True)
        full = bias[..., None, None] if len(shape) in (1, 2) else bias
        out = flash_attn.flash_attn_func(q, k, v, sigmoid_bias=bias)
        expected = attend(q, k, v, full)
        torch.testing.assert_close(out, expected, **CLOSE)
        direction = torch.randn_like(out)
        gradients = [
            torch.autograd.grad((answer * direction).sum(), (q, k, v, bias))
            for answer in (out, expected)
        ]
        torch.testing.assert_close(*gradients, **CLOSE)

    def test_policies_are_biases(self):
        q, k, v = dense(S=7)
        counts = torch.arange(1, 8).double()[:, None]
        out = flash_attn.flash_attn_func(q, k, v, causal=True, sigmoid_bias=NegLogVisible())
        visible = distances(7, 7) >= 0
        torch.testing.assert_close(out, attend(q, k, v, -counts.log(), visible=visible), **CLOSE)
        out = flash_attn.flash_attn_func(q, k, v, sigmoid_bias=Learned(-2.0, num_heads=4))
        torch.testing.assert_close(out, attend(q, k, v, -2.0), **CLOSE)

    def test_no_bias_is_minus_log_of_as_many_keys_as_queries(self):
        q, k, v = dense(S=7)
        out = flash_attn.flash_attn_func(q, k, v)
        torch.testing.assert_close(out, attend(q, k, v, -math.log(7)), **CLOSE)

    def test_packed_arguments_are_their_parts(self):
        q, kv, qkv = random(2, 5, 4, 6), random(2, 7, 2, 2, 6), random(2, 5, 3, 4, 6)
        out = flash_attn.flash_attn_kvpacked_func(q, kv, causal=True, sigmoid_bias=-1.0)
        visible = distances(5, 7) >= 0
        expected = attend(q, kv[:, :, 0], kv[:, :, 1], -1.0, visible=visible)
        torch.testing.assert_close(out, expected, **CLOSE)
        out = flash_attn.flash_attn_qkvpacked_func(qkv, softmax_scale=0.3, sigmoid_bias=-1.0)
        expected = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], -1.0, scale=0.3)
        torch.testing.assert_close(out, expected, **CLOSE)

    def test_weights_are_returned_where_they_are_asked_for(self):
        q, k, v = dense()
        out, lse, actual = flash_attn.flash_attn_func(
            q, k, v, causal=True, return_attn_probs=True, sigmoid_bias=-1.0
        )
        assert lse is None
        expected = weights(q, k, -1.0, visible=distances(5, 7) >= 0)
        torch.testing.assert_close(actual, expected, **CLOSE)
        torch.testing.assert_close(
            out, torch.einsum("bhsk,bkhe->bshe", expected, v.repeat_interleave(2, 2)), **CLOSE
        )

    def test_dropout_drops_weights_and_keeps_their_mean(self):
        torch.manual_seed(0)
        q, k, v = torch.randn(1, 40, 2, 8), torch.randn(1, 40, 2, 8), torch.ones(1, 40, 2, 1)
        whole = flash_attn.flash_attn_func(q, k, v, sigmoid_bias=0.0)
        dropped = flash_attn.flash_attn_func(q, k, v, 0.5, sigmoid_bias=0.0)
        assert (whole != dropped).all()
        torch.testing.assert_close(dropped.mean(), whole.mean(), rtol=0.05, atol=0)

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
    )
    def test_out_has_the_dtype_of_q_and_lies_token_by_token(self, dtype):
        q, k, v = (tensor.to(dtype) for tensor in dense())
        out = flash_attn.flash_attn_func(q, k, v, causal=True, sigmoid_bias=-1.0)
        assert out.dtype == dtype
        assert out.view(2, 5, 24).shape == (2, 5, 24)
        exact = attend(q, k, v, -1.0, visible=distances(5, 7) >= 0)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), exact, rtol=2 * eps, atol=4 * eps)

    def test_it_compiles_in_one_graph(self):
        q, k, v = (tensor.float() for tensor in dense())
        compiled = torch.compile(flash_attn.flash_attn_func, fullgraph=True, backend="aot_eager")
        arguments = {"causal": True, "sigmoid_bias": -1.0}
        torch.testing.assert_close(
            compiled(q, k, v, **arguments), flash_attn.flash_attn_func(q, k, v, **arguments)
        )


class TestVarlen:
    LENGTHS = ([3, 0, 5], [4, 2, 1])

    def expected(self, q, k, v, bias, causal):
        out, start_q, start_k = [], 0, 0
        for s, (S, K) in enumerate(zip(*self.LENGTHS, strict=True)):
            sequence_bias = bias[s] if isinstance(bias, torch.Tensor) else bias
            parts = (q[start_q : start_q + S], k[start_k : start_k + K], v[start_k : start_k + K])
            visible = distances(S, K).view(S, K) >= 0 if causal else True
            out.append(attend(*(part[None] for part in parts), sequence_bias, visible=visible)[0])
            start_q, start_k = start_q + S, start_k + K
        return torch.cat(out)

    @pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
    def test_each_sequence_is_its_own(self, causal):
        q, k, v = random(8, 4, 6), random(7, 2, 6), random(7, 2, 6)
        ends = [torch.tensor([0, *lengths]).cumsum(0).int() for lengths in self.LENGTHS]
        arguments = (*ends, 5, 4)
        out = flash_attn.flash_attn_varlen_func(
            q, k, v, *arguments, causal=causal, sigmoid_bias=-1.5
        )
        torch.testing.assert_close(out, self.expected(q, k, v, -1.5, causal), **CLOSE)
        packed = flash_attn.flash_attn_varlen_kvpacked_func(
            q, torch.stack((k, v), 1), *arguments, causal=causal, sigmoid_bias=-1.5
        )
        assert torch.equal(packed, out)
        by_row = random(3, 4)
        out = flash_attn.flash_attn_varlen_func(
            q, k, v, *arguments, causal=causal, sigmoid_bias=by_row
        )
        torch.testing.assert_close(
            out, self.expected(q, k, v, by_row[..., None, None], causal), **CLOSE
        )

    def test_qkv_packed(self):
        qkv, ends = random(8, 3, 4, 6), torch.tensor([0, 3, 8])
        out = flash_attn.flash_attn_varlen_qkvpacked_func(
            qkv, ends, 5, causal=True, sigmoid_bias=NegLogLength(9)
        )
        for start, end in ((0, 3), (3, 8)):
            q, k, v = qkv[None, start:end].unbind(2)
            visible = distances(end - start, end - start) >= 0
            expected = attend(q, k, v, -math.log(9), visible=visible)[0]
            torch.testing.assert_close(out[start:end], expected, **CLOSE)


class TestOrderOfArguments:
    @pytest.mark.parametrize(
        "name, tensors",
        {
            "flash_attn_func": 3,
            "flash_attn_kvpacked_func": 2,
            "flash_attn_qkvpacked_func": 1,
        }.items(),
    )
    def test_it_is_each_librarys_own(self, name, tensors):
        first = ["dropout_p", "softmax_scale", "causal", "window_size"]
        last = ["alibi_slopes", "deterministic", "return_attn_probs"]
        ours = list(inspect.signature(getattr(flash_attn, name)).parameters)
        assert ours[tensors:] == [*first, "softcap", *last, "sigmoid_bias"]
        ours = list(inspect.signature(getattr(flash_sigmoid, name)).parameters)
        assert ours[tensors:] == [*first, *last, "sigmoid_bias"]

    def test_varlen_and_cache(self):
        def names(function):
            return list(inspect.signature(function).parameters)

        assert names(flash_attn.flash_attn_varlen_func)[3:8] == [
            "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "dropout_p",
        ]  # fmt: skip
        assert names(flash_attn.flash_attn_varlen_func)[-2:] == ["block_table", "sigmoid_bias"]
        assert names(flash_attn.flash_attn_varlen_qkvpacked_func)[:4] == [
            "qkv", "cu_seqlens", "max_seqlen", "dropout_p",
        ]  # fmt: skip
        assert names(flash_attn.flash_attn_with_kvcache) == [
            "q", "k_cache", "v_cache", "k", "v", "rotary_cos", "rotary_sin", "cache_seqlens",
            "cache_batch_idx", "cache_leftpad", "block_table", "softmax_scale", "causal",
            "window_size", "softcap", "rotary_interleaved", "alibi_slopes", "num_splits",
            "return_softmax_lse", "sigmoid_bias",
        ]  # fmt: skip


class TestFlashSigmoid:
    def test_the_bias_is_zero_unless_given(self):
        q, k, v = dense()
        torch.testing.assert_close(
            flash_sigmoid.flash_attn_func(q, k, v), attend(q, k, v, 0.0), **CLOSE
        )
        kv, qkv = torch.stack((k, v), 2), random(2, 5, 3, 4, 6)
        torch.testing.assert_close(
            flash_sigmoid.flash_attn_kvpacked_func(q, kv), attend(q, k, v, 0.0), **CLOSE
        )
        torch.testing.assert_close(
            flash_sigmoid.flash_attn_qkvpacked_func(qkv), attend(*qkv.unbind(2), 0.0), **CLOSE
        )

    def test_a_call_by_position(self):
        q, k, v = dense()
        slopes = random(4).abs()
        out, actual = flash_sigmoid.flash_attn_func(
            q, k, v, 0.0, 0.2, True, (-1, -1), slopes, False, True, -1.5
        )
        bias = -1.5 - slopes[:, None, None] * distances(5, 7).abs()
        settings = {"visible": distances(5, 7) >= 0, "scale": 0.2}
        torch.testing.assert_close(out, attend(q, k, v, bias, **settings), **CLOSE)
        torch.testing.assert_close(actual, weights(q, k, bias, **settings), **CLOSE)


class TestComplaints:
    @pytest.mark.parametrize(
        "error, wrong, name, mention",
        [
            (ValueError, {"q": torch.ones(2, 4, 6)}, "q", "(2, 4, 6)"),
            (ValueError, {"k": torch.ones(2, 5, 3, 6), "v": torch.ones(2, 5, 3, 6)},
             "key", "3 heads"),
            (ValueError,
             {"sigmoid_bias": None, "k": torch.ones(2, 7, 4, 6), "v": torch.ones(2, 7, 4, 6)},
             "sigmoid_bias", "5 and 7"),
            (ValueError, {"sigmoid_bias": torch.ones(3)}, "sigmoid_bias", "(3,)"),
            (TypeError, {"softcap": torch.ones(4)}, "softcap", "flash_sigmoid"),
            (TypeError, {"softcap": None}, "softcap", "flash_sigmoid"),
            (ValueError, {"softcap": -1.0}, "softcap", "-1.0"),
            (ValueError, {"window_size": (-3, 0)}, "window_size", "(-3, 0)"),
            (TypeError, {"window_size": (2.0, None)}, "window_size", "(2.0, -1)"),
            (TypeError, {"window_size": torch.ones(2)}, "window_size", "a tensor"),
            (TypeError, {"window_size": np.ones(2)}, "window_size", "1.0"),
            (ValueError, {"window_size": torch.ones(3, dtype=torch.int64)},
             "window_size", "(1, 1, 1)"),
            (TypeError, {"window_size": 3}, "window_size", "3"),
            (TypeError, {"q": [1.0]}, "q", "[1.0]"),
            (TypeError, {"k": np.ones((2, 5, 4, 6))}, "k", "numpy.ndarray"),
            (ValueError, {"v": torch.ones(2, 3).to_sparse()}, "v", "sparse"),
            (TypeError, {"softmax_scale": "0.3"}, "softmax_scale", "'0.3'"),
            (TypeError, {"softmax_scale": torch.nn.Parameter(torch.ones(()))},
             "softmax_scale", "multiply q"),
            (TypeError, {"causal": None}, "causal", "None"),
            (TypeError, {"dropout_p": "0.1"}, "dropout_p", "'0.1'"),
            (TypeError, {"return_attn_probs": "no"}, "return_attn_probs", "'no'"),
            (ValueError, {"sigmoid_bias": float("nan")}, "sigmoid_bias", "nan"),
            (TypeError, {"sigmoid_bias": "log"}, "sigmoid_bias", "'log'"),
            (TypeError, {"softcap": True}, "softcap", "True"),
            (ValueError, {"softcap": float("inf")}, "softcap", "inf"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )  # fmt: skip
    def test_an_error_names_the_argument(self, error, wrong, name, mention):
        good = {"q": torch.ones(2, 5, 4, 6), "sigmoid_bias": -1.0}
        good |= {"k": torch.ones(2, 5, 4, 6), "v": torch.ones(2, 5, 4, 6)}
        with pytest.raises(error) as caught:
            flash_attn.flash_attn_func(**good | wrong)
        assert str(caught.value).startswith((f"{name} ", f"{name}: "))
        assert mention in str(caught.value)

    @pytest.mark.parametrize(
        "wrong",
        [{"cu_seqlens_q": [0, 5]}, {"cu_seqlens_k": None}, {"max_seqlen_q": 5.5}, {"q": None}],
    )
    def test_packed_arguments_of_another_kind(self, wrong):
        q, ends = torch.ones(5, 4, 6), torch.tensor([0, 5])
        good = {"q": q, "k": q, "v": q, "cu_seqlens_q": ends, "cu_seqlens_k": ends}
        good |= {"max_seqlen_q": 5, "max_seqlen_k": 5, "sigmoid_bias": -1.0}
        with pytest.raises(TypeError, match=f"^{next(iter(wrong))}:? "):
            flash_attn.flash_attn_varlen_func(**good | wrong)

    def test_packed_shapes(self):
        with pytest.raises(ValueError, match=r"^kv must be .* 2, .*got \(2, 7, 3, 2, 6\)"):
            flash_attn.flash_attn_kvpacked_func(torch.ones(2, 5, 4, 6), torch.ones(2, 7, 3, 2, 6))
        with pytest.raises(ValueError, match=r"^qkv must be .* 3, .*got \(2, 7, 2, 6\)"):
            flash_attn.flash_attn_qkvpacked_func(torch.ones(2, 7, 2, 6))

    def test_packed_sequences_want_a_bias(self):
        q, ends = torch.ones(7, 4, 6), torch.tensor([0, 7])
        with pytest.raises(ValueError, match=r"^sigmoid_bias: packed sequences"):
            flash_attn.flash_attn_varlen_func(q, q, q, ends, ends, 7, 7)

    @pytest.mark.parametrize("refused", ["return_attn_probs", "block_table"])
    def test_packed_sequences_refuse_by_name(self, refused):
        q, ends = torch.ones(7, 4, 6), torch.tensor([0, 7])
        with pytest.raises(NotImplementedError, match=f"^{refused}: "):
            flash_attn.flash_attn_varlen_func(
                q, q, q, ends, ends, 7, 7, sigmoid_bias=0.0, **{refused: torch.ones(1)}
            )

    def test_weights_under_dropout_are_refused(self):
        q = torch.ones(2, 5, 4, 6)
        with pytest.raises(NotImplementedError, match=r"^return_attn_probs:? .*0\.5"):
            flash_attn.flash_attn_func(q, q, q, 0.5, return_attn_probs=True)
