"""The replacement for torch's layer, against torch's own code with a sigmoid for its softmax.

The oracle is ``nn.MultiheadAttention`` itself in float64, with both of its softmax calls replaced.
Its treatment of masks, shapes, extra keys and missing parts is then that of torch.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigmoid_attention import Constant, Learned, NegLogLength, NegLogVisible
from sigmoid_attention.nn import SigmoidMultiheadAttention, replace_multihead_attention

# Torch says so whenever its encoder makes a nested tensor.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
BIAS = -1.75
E, H = 12, 4


@pytest.fixture
def torch_with_a_sigmoid(monkeypatch):
    """Torch's layers compute sigmoid(logits + BIAS); its fast paths, which cannot, are off."""

    def sigmoid(logits, dim):
        return torch.sigmoid(logits + BIAS)

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        if is_causal:
            attn_mask = torch.full(logits.shape[-2:], -math.inf).triu(1)
        if attn_mask is not None:
            logits = logits + attn_mask
        return torch.sigmoid(logits + BIAS) @ value

    monkeypatch.setattr(F, "softmax", sigmoid)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


def random(*shape, grad=False):
    return torch.randn(shape, dtype=torch.float64, requires_grad=grad)


def pair(**settings):
    """Torch's layer and ours, with the same random parameters."""
    theirs = nn.MultiheadAttention(E, H, dtype=torch.float64, **settings)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = SigmoidMultiheadAttention(E, H, dtype=torch.float64, sigmoid_bias=BIAS, **settings)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_same(theirs, ours, inputs, **arguments):
    """Outputs, weights and every gradient."""
    expected, actual = theirs(*inputs, **arguments), ours(*inputs, **arguments)
    torch.testing.assert_close(actual, expected, **CLOSE)
    direction = torch.randn_like(expected[0])
    loss = [(out * direction).sum() + (weights**2).sum() for out, weights in (expected, actual)]
    of = [[*inputs, *layer.parameters()] for layer in (theirs, ours)]
    gradients = [
        torch.autograd.grad(each, tensors, allow_unused=True)
        for each, tensors in zip(loss, of, strict=True)
    ]
    torch.testing.assert_close(gradients[1], gradients[0], **CLOSE)


VARIANTS = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "kdim-vdim": {"kdim": 5, "vdim": 7},
    "kdim-vdim-no_bias": {"kdim": 5, "vdim": 7, "bias": False, "batch_first": True},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
}


@pytest.mark.usefixtures("torch_with_a_sigmoid")
class TestAgainstTorch:
    N, L, S = 3, 5, 7

    def inputs(self, settings, batched=True):
        dims = (E, settings.get("kdim", E), settings.get("vdim", E))
        lengths = (self.L, self.S, self.S)
        if not batched:
            return [
                random(length, dim, grad=True) for length, dim in zip(lengths, dims, strict=True)
            ]
        shapes = [
            (self.N, length, dim) if settings.get("batch_first") else (length, self.N, dim)
            for length, dim in zip(lengths, dims, strict=True)
        ]
        return [random(*shape, grad=True) for shape in shapes]

    def masks(self, kind, batched=True):
        hidden = torch.rand(self.N, self.S) < 0.4
        hidden = hidden if batched else hidden[0]
        closed = torch.zeros(hidden.shape).double().masked_fill(hidden, -math.inf)
        heads = H * (self.N if batched else 1)
        return {
            "none": {},
            "padding": {"key_padding_mask": hidden},
            "float-padding": {"key_padding_mask": random(*hidden.shape) + closed},
            "mask": {"attn_mask": torch.rand(self.L, self.S) < 0.4},
            "mask-per-head": {"attn_mask": torch.rand(heads, self.L, self.S) < 0.4},
            "float-mask": {"attn_mask": random(self.L, self.S)},
            "padding-and-mask": {
                "key_padding_mask": hidden, "attn_mask": torch.rand(self.L, self.S) < 0.4,
            },
            "float-padding-and-mask": {
                "key_padding_mask": closed, "attn_mask": random(heads, self.L, self.S),
            },
        }[kind]  # fmt: skip

    @pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
    @pytest.mark.parametrize(
        "kind",
        ["none", "padding", "float-padding", "mask", "mask-per-head", "float-mask",
         "padding-and-mask", "float-padding-and-mask"],
    )  # fmt: skip
    def test_every_variant_under_every_mask(self, settings, kind):
        assert_same(*pair(**settings), self.inputs(settings), **self.masks(kind))

    @pytest.mark.parametrize("kind", ["none", "padding", "mask-per-head", "float-mask"])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_without_a_batch(self, kind, batch_first):
        settings = {"batch_first": batch_first, "add_bias_kv": True}
        assert_same(*pair(**settings), self.inputs(settings, False), **self.masks(kind, False))

    def test_weights_of_each_head(self):
        theirs, ours = pair()
        assert_same(theirs, ours, self.inputs({}), average_attn_weights=False)
        assert ours(*self.inputs({}), average_attn_weights=False)[1].shape == (3, H, 5, 7)

    @pytest.mark.parametrize("settings", [{}, {"add_bias_kv": True}], ids=["plain", "bias_kv"])
    @pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
    def test_the_causal_hint_changes_nothing(self, settings, padded):
        theirs, ours = pair(**settings, batch_first=True)
        x = random(self.N, self.S, E, grad=True)
        causal = nn.Transformer.generate_square_subsequent_mask(self.S, dtype=torch.float64)
        masks = (
            {"key_padding_mask": self.masks("float-padding")["key_padding_mask"]} if padded else {}
        )
        expected, _ = theirs(x, x, x, attn_mask=causal, need_weights=False, **masks)
        for is_causal in (False, True):
            out, weights = ours(
                x, x, x, attn_mask=causal, need_weights=False, is_causal=is_causal, **masks
            )
            torch.testing.assert_close(out, expected, **CLOSE)
            assert weights is None

    def test_a_boolean_and_a_floating_mask_combine(self):
        _, ours = pair()
        inputs, masks = self.inputs({}), self.masks("padding")
        added = random(self.L, self.S)
        both = ours(*inputs, key_padding_mask=masks["key_padding_mask"], attn_mask=added)
        hidden = (
            torch.zeros(self.N, self.S).double().masked_fill(masks["key_padding_mask"], -math.inf)
        )
        torch.testing.assert_close(
            both, ours(*inputs, key_padding_mask=hidden, attn_mask=added), **CLOSE
        )

    @pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_a_whole_transformer(self, norm_first, training):
        theirs = nn.Transformer(
            E, H, 2, 2, 16, 0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
        ).train(training)
        ours = replace_multihead_attention(copy.deepcopy(theirs), BIAS)
        source, target = random(3, 7, E), random(3, 5, E)
        masks = {
            "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64),
            "src_key_padding_mask": PADDED,
            "memory_key_padding_mask": PADDED,
        }
        torch.testing.assert_close(
            ours(source, target, **masks), theirs(source, target, **masks), **CLOSE
        )


def encoder(norm_first=False):
    layer = nn.TransformerEncoderLayer(
        E, H, 16, 0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()


PADDED = torch.arange(7) >= torch.tensor([[7], [4], [2]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
MASKS = {"whole": {}, "padded": {"src_key_padding_mask": PADDED}, "masked": {"mask": CAUSAL}}


class TestFastPath:
    """In evaluation torch's layers run a softmax on the weights of a layer they do not call."""

    def calls(self, model, x, **masks):
        """How often the forward pass of an attention layer ran; without hooks, which disable it."""
        count = 0
        attention_class = type(model.layers[0].self_attn)

        class Counted(attention_class):
            def forward(self, *arguments, **settings):
                nonlocal count
                count += 1
                return super().forward(*arguments, **settings)

        for layer in model.layers:
            layer.self_attn.__class__ = Counted
        model(x, **masks)
        for layer in model.layers:
            layer.self_attn.__class__ = attention_class
        return count

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
    def test_it_is_never_taken(self, mode, norm_first, masks, torch_with_a_sigmoid):
        theirs = encoder(norm_first)
        ours = replace_multihead_attention(copy.deepcopy(theirs), BIAS)
        x = random(3, 7, E)
        expected = theirs(x, **masks)
        torch.backends.mha.set_fastpath_enabled(True)
        with mode():
            assert self.calls(theirs, x, **masks) == 0
            assert self.calls(ours, x, **masks) == 2
            out = ours(x, **masks)
        if "src_key_padding_mask" in masks:
            # Torch goes through a nested tensor, and leaves zeros at padded places.
            out, expected = out[~PADDED], expected[~PADDED]
        torch.testing.assert_close(out, expected, **CLOSE)

    def test_it_is_never_taken_by_a_layer_set_by_hand(self):
        model = encoder()
        for layer in model.layers:
            layer.self_attn = SigmoidMultiheadAttention(
                E, H, batch_first=True, dtype=torch.float64, sigmoid_bias=BIAS
            )
        model.eval()
        with torch.no_grad():
            assert self.calls(model, random(3, 7, E), src_key_padding_mask=PADDED) == 2
            assert self.calls(copy.deepcopy(model), random(3, 7, E)) == 2

    @pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=["strided", "jagged"])
    def test_nested_sequences_are_answered_one_by_one(self, layout):
        model = replace_multihead_attention(encoder(), NegLogVisible())
        rows = [random(length, E) for length in (3, 1, 6)]
        with torch.no_grad():
            out = model(torch.nested.nested_tensor(rows, layout=layout))
            assert out.layout == layout
            for row, actual in zip(rows, out.unbind(), strict=True):
                torch.testing.assert_close(actual, model(row[None])[0], **CLOSE)

    def test_nested_queries_and_keys_differ_in_length_and_learn(self):
        _, layer = pair(batch_first=True, kdim=5, vdim=5)
        queries = [random(length, E, grad=True) for length in (3, 1)]
        keys = [random(length, 5, grad=True) for length in (2, 4)]
        nested = [torch.nested.as_nested_tensor(parts) for parts in (queries, keys)]
        out, _ = layer(nested[0], nested[1], nested[1], need_weights=False)
        expected = [
            layer(q[None], k[None], k[None])[0][0] for q, k in zip(queries, keys, strict=True)
        ]
        torch.testing.assert_close(list(out.unbind()), expected, **CLOSE)
        tensors = [*queries, *keys, *layer.parameters()]
        gradients = [
            torch.autograd.grad(sum(part.square().sum() for part in parts), tensors)
            for parts in (out.unbind(), expected)
        ]
        torch.testing.assert_close(*gradients, **CLOSE)


class TestLayer:
    @pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
    def test_the_state_dict_is_torchs(self, settings):
        theirs, ours = nn.MultiheadAttention(E, H, **settings), SigmoidMultiheadAttention(
            E, H, sigmoid_bias=BIAS, **settings
        )  # fmt: skip
        assert list(theirs.state_dict()) == list(ours.state_dict())
        theirs.load_state_dict(ours.state_dict())
        assert isinstance(ours, nn.MultiheadAttention)

    def test_parameters_start_like_torchs(self):
        torch.manual_seed(3)
        theirs = nn.MultiheadAttention(E, H)
        torch.manual_seed(3)
        ours = SigmoidMultiheadAttention(E, H, sigmoid_bias=BIAS)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)

    def test_a_learned_bias_is_a_parameter(self):
        layer = SigmoidMultiheadAttention(E, H, sigmoid_bias=Learned(NegLogLength(9), num_heads=H))
        assert layer.state_dict()["sigmoid_bias.value"].shape == (H,)
        x = torch.randn(4, 2, E)
        layer(x, x, x)[0].square().sum().backward()
        assert layer.sigmoid_bias.value.grad.abs().min() > 0

    def test_the_answer_does_not_depend_on_padding(self):
        layer = SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=NegLogLength(9))
        x = torch.randn(2, 5, E)
        longer = torch.cat((x, torch.full((2, 4, E), 1e4)), 1)
        hidden = (torch.arange(9) >= 5).expand(2, -1)
        torch.testing.assert_close(
            layer(longer, longer, longer, key_padding_mask=hidden)[0][:, :5], layer(x, x, x)[0]
        )

    def test_dropout_takes_the_same_weights_from_output_and_answer(self):
        torch.manual_seed(0)
        layer = SigmoidMultiheadAttention(
            E, H, dropout=0.5, batch_first=True, sigmoid_bias=0.0, dtype=torch.float64
        )
        x = random(2, 6, E)
        out, weights = layer(x, x, x, average_attn_weights=False)
        value = x @ layer.in_proj_weight[2 * E :].T + layer.in_proj_bias[2 * E :]
        rows = weights @ value.view(2, 6, H, -1).transpose(1, 2)
        torch.testing.assert_close(out, layer.out_proj(rows.transpose(1, 2).flatten(2)), **CLOSE)
        dropped = (weights == 0).double().mean()
        assert 0.3 < dropped < 0.7
        assert not (layer.eval()(x, x, x)[1] == 0).any()

    def test_autocast(self):
        layer = SigmoidMultiheadAttention(E, H, add_bias_kv=True, sigmoid_bias=BIAS)
        x = torch.randn(4, 2, E)
        expected = layer(x, x, x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x, x, x)[0]
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.02)

    def test_it_compiles_in_one_graph(self):
        layer = SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=BIAS)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        x, hidden = torch.randn(2, 5, E), torch.zeros(2, 5, dtype=torch.bool)
        torch.testing.assert_close(
            compiled(x, x, x, key_padding_mask=hidden), layer(x, x, x, key_padding_mask=hidden)
        )


class TestComplaints:
    @pytest.mark.parametrize(
        "wrong, name, mention",
        [
            ({"query": torch.ones(3, 5, 11)}, "query", "12 channels, got (3, 5, 11)"),
            ({"key": torch.ones(7, E)}, "key", "like query"),
            ({"key": torch.ones(2, 7, E), "value": torch.ones(2, 7, E)}, "key", "dimension 0"),
            ({"value": torch.ones(3, 6, E)}, "value", "(3, 6, 12) and (3, 7, 12)"),
            ({"key_padding_mask": torch.ones(3, 5).bool()}, "key_padding_mask", "got (3, 5)"),
            ({"attn_mask": torch.ones(3, 5, 7)}, "attn_mask", "(5, 7) or (12, 5, 7), got"),
            ({"attn_mask": torch.ones(5, 7).int()}, "attn_mask", "torch.int32"),
            ({"is_causal": True}, "is_causal", "attn_mask"),
            ({"query": torch.ones(())}, "query", "12 channels, got ()"),
            ({"query": torch.ones(3, 5, E).double()}, "query", "torch.float32, got torch.float64"),
            ({"key": torch.ones(3, 7, E).half()}, "key", "torch.float32, got torch.float16"),
            ({"value": torch.ones(3, 7, E).long()}, "value", "floating, got torch.int64"),
            ({"query": torch.ones(3, 5, E) > 0}, "query", "floating, got torch.bool"),
            ({"key": torch.ones(3, 7, E).to(torch.complex64)}, "key", "got torch.complex64"),
            ({"value": torch.ones(3, 7, E, device="meta")}, "value", "cpu, got meta"),
            ({"value": torch.ones(3, 7, E).to_sparse()}, "value", "torch.sparse_coo"),
            ({"attn_mask": torch.ones(5, 7).to(torch.float8_e4m3fn)}, "attn_mask", "float8"),
            ({"key_padding_mask": torch.ones(3, 7, device="meta")}, "key_padding_mask", "meta"),
            ({"key_padding_mask": torch.ones(3, 7).to_sparse()}, "key_padding_mask", "sparse"),
            ({"is_causal": 2}, "is_causal", "True or False, got 2"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )  # fmt: skip
    def test_a_value_error_names_the_argument(self, wrong, name, mention):
        layer = SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=BIAS)
        good = {"query": torch.ones(3, 5, E), "key": torch.ones(3, 7, E)}
        with pytest.raises(ValueError) as caught:
            layer(**good | {"value": torch.ones(3, 7, E)} | wrong)
        assert str(caught.value).startswith((f"{name} ", f"{name}: "))
        assert mention in str(caught.value)

    @pytest.mark.parametrize(
        "wrong, name, mention",
        [
            ({"key": np.ones((3, 7, E))}, "key", "numpy.ndarray"),
            ({"query": "abc"}, "query", "the string 'abc'"),
            ({"attn_mask": np.ones((5, 7))}, "attn_mask", "numpy.ndarray"),
            ({"need_weights": None}, "need_weights", "True or False, got None"),
            ({"need_weights": torch.ones(3)}, "need_weights", "True or False, got a tensor"),
            ({"average_attn_weights": "no"}, "average_attn_weights", "got the string 'no'"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )  # fmt: skip
    def test_a_type_error_names_the_argument(self, wrong, name, mention):
        layer = SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=BIAS)
        good = {"query": torch.ones(3, 5, E), "key": torch.ones(3, 7, E)}
        with pytest.raises(TypeError) as caught:
            layer(**good | {"value": torch.ones(3, 7, E)} | wrong)
        assert str(caught.value).startswith((f"{name} ", f"{name}: "))
        assert mention in str(caught.value)

    def test_a_bias_is_a_number_or_a_policy(self):
        with pytest.raises(TypeError, match=r"^sigmoid_bias .* got a tensor"):
            SigmoidMultiheadAttention(E, H, sigmoid_bias=torch.zeros(H))

    @pytest.mark.parametrize(
        "wrong, sentence",
        [
            ({"sigmoid_bias": float("nan")}, "sigmoid_bias:? .* got nan"),
            ({"sigmoid_bias": 10**400}, "sigmoid_bias:? .* got a number of 1329 bits"),
            ({"sigmoid_bias": Constant(torch.zeros(()))}, "sigmoid_bias: Constant holds a tensor"),
            (
                {"sigmoid_bias": NegLogLength(8, torch.zeros(()))},
                "sigmoid_bias: NegLogLength holds",
            ),
            ({"sigmoid_bias": Learned(-1.0, num_heads=H + 1)}, "sigmoid_bias: Learned has"),
            ({"dropout": 1.5}, "dropout:? .* got 1.5"),
            ({"impl": "fast"}, "impl must be auto or one of .* got the string 'fast'"),
            ({"embed_dim": E + 1}, "embed_dim must be a multiple of num_heads"),
            ({"add_bias_kv": 2}, "add_bias_kv must be True or False, got 2"),
            ({"kdim": 0}, "kdim must be positive, got 0"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_wrong_values_are_refused_by_the_constructor(self, wrong, sentence):
        good = {"embed_dim": E, "num_heads": H, "sigmoid_bias": BIAS}
        with pytest.raises(ValueError, match=f"^{sentence}"):
            SigmoidMultiheadAttention(**good | wrong)

    @pytest.mark.parametrize(
        "wrong, sentence",
        [
            ({"sigmoid_bias": True}, "sigmoid_bias:? .* got True"),
            ({"dropout": "0.1"}, "dropout:? .* got the string '0.1'"),
            ({"num_heads": 2.0}, "num_heads must be a whole number, got 2.0"),
            ({"bias": None}, "bias must be True or False, got None"),
            ({"batch_first": "no"}, "batch_first must be True or False, got the string 'no'"),
            ({"add_zero_attn": None}, "add_zero_attn must be True or False, got None"),
            ({"kdim": 2.5}, "kdim must be a whole number, got 2.5"),
            ({"vdim": "8"}, "vdim must be a whole number, got the string '8'"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_wrong_types_are_refused_by_the_constructor(self, wrong, sentence):
        good = {"embed_dim": E, "num_heads": H, "sigmoid_bias": BIAS}
        with pytest.raises(TypeError, match=f"^{sentence}"):
            SigmoidMultiheadAttention(**good | wrong)

    @pytest.mark.parametrize("wrong", ["query", "key", "value", "key_padding_mask", "attn_mask"])
    def test_lists_are_no_tensors(self, wrong):
        layer = SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=BIAS)
        x = torch.ones(3, 5, E)
        with pytest.raises(TypeError, match=rf"^{wrong} must be a tensor of torch, got \[\[1\.0"):
            layer(**{"query": x, "key": x, "value": x} | {wrong: [[1.0]]})

    @pytest.mark.parametrize(
        "wrong, sentence",
        [
            ({"key": (2, 4)}, "key, value:? .* got \\[2, 4\\] and \\[3, 3\\]"),
            ({"value": (4, 2)}, "key, value:? .* got \\[3, 3\\] and \\[4, 2\\]"),
            ({"key": (3, 2, 1), "value": (3, 2, 1)}, "key, value:? .* as many sequences as query"),
            ({"query": (2, 4, torch.float64)}, "query:? .* torch.float32, got torch.float64"),
            ({"value": (3, 3, torch.int64)}, "value must be floating, got torch.int64"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    @pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
    def test_nested_sequences_that_do_not_fit(self, layout, wrong, sentence):
        def nested(*lengths):
            dtype = lengths[-1] if isinstance(lengths[-1], torch.dtype) else torch.float32
            parts = [torch.ones(n, E, dtype=dtype) for n in lengths if isinstance(n, int)]
            return torch.nested.nested_tensor(parts, layout=layout)

        layer = SigmoidMultiheadAttention(E, H, batch_first=True, sigmoid_bias=BIAS)
        lengths = {"query": (2, 4), "key": (3, 3), "value": (3, 3)}
        assert layer(**{k: nested(*v) for k, v in lengths.items()}, need_weights=False)[0].is_nested
        with pytest.raises(ValueError, match=f"^{sentence}"):
            layer(**{k: nested(*v) for k, v in (lengths | wrong).items()}, need_weights=False)

    def test_options_without_support_for_nested_sequences(self):
        nested = torch.nested.nested_tensor([torch.ones(3, E), torch.ones(2, E)])
        layer = SigmoidMultiheadAttention(E, H, sigmoid_bias=BIAS)
        with pytest.raises(NotImplementedError, match=r"^need_weights: "):
            layer(nested, nested, nested)
        with pytest.raises(ValueError, match=r"^key_padding_mask, attn_mask: nested"):
            layer(nested, nested, nested, need_weights=False, attn_mask=torch.ones(3, 3))
        with pytest.raises(ValueError, match=r"^query, key, value must all be nested"):
            layer(nested, torch.ones(2, 3, E), nested, need_weights=False)
        layer = SigmoidMultiheadAttention(E, H, sigmoid_bias=BIAS, add_zero_attn=True)
        with pytest.raises(NotImplementedError, match=r"^add_bias_kv, add_zero_attn: "):
            layer(nested, nested, nested, need_weights=False)


@pytest.mark.parametrize(
    "bias", [-3.0, NegLogLength(8), Learned(-2.0, 4)], ids=lambda b: type(b).__name__
)
def test_printing_shows_the_bias(bias):
    text = repr(SigmoidMultiheadAttention(16, 4, sigmoid_bias=bias))
    shown = "Learned(" if isinstance(bias, Learned) else f"sigmoid_bias={bias}"
    assert shown in text and "num_heads=4" in text
