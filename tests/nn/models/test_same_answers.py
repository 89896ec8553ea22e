"""Equal outputs in one pass, from a cache, in chunks and under padding, to 1e-5 in fp32.

N = 13 tokens, with 3 query heads on 1 key head, for every position, bias policy and placement.
"""

import itertools

import pytest
import torch

from sigmoid_attention.nn import DecoderLM, ModelConfig

N, VOCABULARY = 13, 11
TOLERANCE = dict(atol=1e-5, rtol=0)

BIASES = {
    "constant": dict(bias=-2.0),
    "length": dict(bias="neg_log_length", bias_offset=-0.5),
    "visible": dict(bias="neg_log_visible"),
    "effective": dict(bias="neg_log_effective_length"),
    "learned": dict(bias="neg_log_length", learn_bias=True),
}
POSITIONS = ("alibi", "rope", "sincos", "learned", "cape", "none")
PLACEMENTS = {
    "pre": dict(norm_placement="pre", qk_norm="rms"),
    "post": dict(norm_placement="post", layer_scale=0.5),
    "hybrid": dict(norm_placement="hybrid", qk_norm="layer"),
}
CASES = {
    f"{position}-{bias}-{placement}": {
        "position": position,
        **BIASES.get(bias, {"activation": "softmax"}),
        **PLACEMENTS[placement],
    }
    for position, bias, placement in itertools.product(POSITIONS, [*BIASES, "softmax"], PLACEMENTS)
    if bias != "effective" or position == "alibi"
}
CASES |= {
    f"{case}-{extra}": {**CASES[case], **settings}
    for case in ("alibi-effective-hybrid", "rope-visible-pre", "rope-softmax-pre")
    for extra, settings in {
        "window5": dict(window_size=5),
        "softcap": dict(softcap=4.0),
        "untied": dict(tie_embeddings=False, num_kv_heads=None, head_dim=6, feed_forward="gelu"),
        "window1": dict(window_size=1),
    }.items()
}
OPTIONS = {
    "centred": dict(centred_keys=True),
    "centred-learned-window5": dict(centred_keys=True, learn_bias=True, window_size=5),
    "state": dict(state_bias=True),
    "gate-residual": dict(gate="head", value_residual=True),
    "mass0.5": dict(mass_exponent=0.5),
    "all": dict(
        centred_keys=True,
        state_bias=True,
        gate="element",
        value_residual=True,
        mass_exponent="learned",
    ),
}
OPTIONS["reach"] = dict(reach="trained", max_seq_len=6, centred_keys=True, learn_bias=True)
OPTIONS["all-window5"] = {**OPTIONS["all"], "window_size": 5}
CASES |= {
    f"rope+alibi-{arm}-hybrid-{option}": {
        "position": "rope+alibi",
        **BIASES.get(arm, {"activation": "softmax"}),
        **PLACEMENTS["hybrid"],
        **settings,
    }
    for option, settings in {"plain": {}, **OPTIONS}.items()
    for arm in ("effective", "softmax")
}

FEW = [case for case in CASES if case.endswith("-hybrid") or "window" in case]


def make_model(case, **changes):
    settings = {
        "vocab_size": VOCABULARY,
        "dim": 24,
        "layers": 2,
        "num_heads": 3,
        "num_kv_heads": 1,
        "ffn_dim": 20,
        "max_seq_len": 16,
        **CASES[case],
        **changes,
    }
    model = DecoderLM(ModelConfig(**settings)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # gains and biases that have been trained away from their start
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=CASES, ids=str)
def model(request):
    return make_model(request.param)


def in_chunks(model, tokens, sizes, mask=None):
    """Logits of all tokens, read in pieces of these sizes through a cache."""
    cache = model.new_cache(len(tokens), tokens.shape[1])
    pieces, end = [], 0
    for chunk in tokens.split(sizes, dim=1):
        end += chunk.shape[1]
        so_far = None if mask is None else mask[:, :end]
        pieces.append(model(chunk, cache=cache, attn_mask=so_far))
    return torch.cat(pieces, 1)


@pytest.mark.parametrize("sizes", [[1] * N, [5, 1, 4, 3]], ids=["1x13", "5-1-4-3"])
def test_a_cache_changes_nothing(model, sizes):
    tokens = torch.randint(VOCABULARY, (2, N))
    torch.testing.assert_close(in_chunks(model, tokens, sizes), model(tokens), **TOLERANCE)


def test_left_padding_changes_nothing_with_and_without_a_cache(model):
    lengths = (N, 9, 4, 1)
    tokens = torch.randint(VOCABULARY, (len(lengths), N))
    mask = torch.arange(N) >= N - torch.tensor(lengths)[:, None]
    padded = model(tokens, attn_mask=mask)
    chunked = in_chunks(model, tokens, [6, 4, 2, 1], mask)
    assert padded.isfinite().all() and chunked.isfinite().all()
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, N - length :])[0]
        torch.testing.assert_close(padded[row, N - length :], alone, **TOLERANCE)
        torch.testing.assert_close(chunked[row, N - length :], alone, **TOLERANCE)


@pytest.mark.parametrize("case", FEW)
def test_right_padding_changes_nothing(case):
    model = make_model(case)
    tokens = torch.randint(VOCABULARY, (2, N))
    mask = torch.arange(N) < torch.tensor([[N], [7]])
    padded = model(tokens, attn_mask=mask)
    torch.testing.assert_close(padded[1, :7], model(tokens[1:, :7])[0], **TOLERANCE)


@pytest.mark.parametrize("case", FEW)
def test_the_future_is_not_seen(case):
    model = make_model(case)
    tokens = torch.randint(VOCABULARY, (1, N))
    changed = tokens.clone()
    changed[:, 8] = (changed[:, 8] + 1) % VOCABULARY
    torch.testing.assert_close(model(changed)[:, :8], model(tokens)[:, :8], **TOLERANCE)


@pytest.mark.parametrize("case", ["alibi-length-pre", "rope-length-hybrid"])
def test_guessing_n_from_the_call_would_have_changed_the_answers(case):
    model = make_model(case)
    tokens = torch.randint(VOCABULARY, (1, N))
    shorter = make_model(case, max_seq_len=N - 4)
    shorter.load_state_dict(model.state_dict())
    assert (shorter(tokens) - model(tokens)).abs().max() > 1e-2
