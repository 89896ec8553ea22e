"""Rows of attention as mixtures: outputs of the operator's definition, in both directions."""

import math
from dataclasses import replace

import pytest
import torch

from sigmoid_attention.attention import CentredKeys, sigmoid_attention
from sigmoid_attention.mixtures import Mixture
from sigmoid_attention.mixtures.attention_row import (
    AttentionContext,
    AttentionHead,
    heads_as_hierarchy,
    hierarchy_as_heads,
)
from sigmoid_attention.mixtures.hierarchy import Hierarchy

SEQUENCES, TOKENS, WIDTH = 5, 4, 3
BIASES = (torch.tensor(-0.7).double(), torch.linspace(-2, 1, TOKENS, dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(
    head_dim: int, channels: int, bias: torch.Tensor, seed: int = 0, centring: float = 0.0
) -> AttentionHead:
    query, key = normal(2, WIDTH, head_dim, seed=seed)
    return AttentionHead(query, key, normal(WIDTH, channels, seed=seed + 100), bias, centring)


def attended(head: AttentionHead, tokens_BNM: torch.Tensor) -> torch.Tensor:
    """The operator's answers, (B, N, E)."""
    query, key, value = (
        (tokens_BNM @ weights)[:, None] for weights in (head.query_MD, head.key_MD, head.value_ME)
    )
    bias = CentredKeys(head.bias.expand(1, 1, TOKENS, TOKENS), head.centring)
    return sigmoid_attention(query, key, value, bias=bias, impl="reference")[:, 0]


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", BIASES, ids=("one-bias", "bias-a-key"))
@pytest.mark.parametrize("head_dim", (1, 2, 3, 5))
@pytest.mark.parametrize("row", range(TOKENS))
@pytest.mark.parametrize("centring", (0.0, 0.75, 1.0, float(TOKENS)), ids="centring-{}".format)
def test_a_row_over_a_sequence_is_a_mixture_and_back(centring, row, head_dim, bias):
    head = drawn(head_dim, 2, bias, centring=centring)
    tokens = normal(SEQUENCES, TOKENS, WIDTH, seed=7)
    family, theta_EP = head.as_mixture(TOKENS, row)
    expected = attended(head, tokens)[:, row]
    close(family.predict(theta_EP, tokens.flatten(1)).T, expected)
    again = AttentionHead.of_mixture(family, theta_EP, row, head_dim=head_dim, centring=centring)
    assert again.query_MD.shape == (WIDTH, head_dim)
    close(again.query_MD @ again.key_MD.T, head.query_MD @ head.key_MD.T)
    close(again.value_ME, head.value_ME)
    close(attended(again, tokens)[:, row], expected)


@pytest.mark.parametrize("centring", (0.0, 0.75, 1.0), ids="centring-{}".format)
def test_a_sequence_of_one_token_shows_the_symmetric_part(centring):
    head = drawn(2, 2, BIASES[0], centring=centring)
    family, theta_EP = head.as_mixture(1, 0)
    again = AttentionHead.of_mixture(family, theta_EP, 0, head_dim=3, centring=centring)
    product = head.query_MD @ head.key_MD.T / math.sqrt(2)
    expected = (product + product.T) / 2 if centring < 1 else 0 * product
    close(again.query_MD @ again.key_MD.T / math.sqrt(3), expected)


@pytest.mark.parametrize("bias", (BIASES[0], BIASES[1][:3]), ids=("one-bias", "bias-a-key"))
@pytest.mark.parametrize("centring", (0.0, 0.75, 1.0), ids="centring-{}".format)
def test_attention_to_a_context_is_a_mixture_and_back(centring, bias):
    keys, dim, channels = 3, 5, 2
    context = AttentionContext(normal(keys, dim), normal(keys, channels, seed=1), bias, centring)
    query = normal(7, dim, seed=2)
    expected = sigmoid_attention(
        query[None, None], context.key_KD[None, None], context.value_KE[None, None],
        bias=CentredKeys(bias.expand(1, 1, 7, keys), centring), impl="reference",
    )[0, 0]  # fmt: skip
    family, theta_EP = context.as_mixture()
    close(family.predict(theta_EP, query).T, expected)
    again = AttentionContext.of_mixture(family, theta_EP, centring=centring)
    close(again.key_KD, context.key_KD - (centring == 1) * context.key_KD.mean(0))
    close(again.value_KE, context.value_KE)
    close(again.bias, bias.expand(keys))


def test_any_mixture_of_its_kind_is_attention_to_a_context():
    family = Mixture("sigmoid", "constant", k=4, d=3)
    theta = normal(family.size)
    context, inputs = AttentionContext.of_mixture(family, theta[None]), normal(6, 3, seed=1)
    out = sigmoid_attention(
        inputs[None, None], context.key_KD[None, None], context.value_KE[None, None],
        bias=context.bias.expand(1, 1, 6, 4), impl="reference",
    )  # fmt: skip
    close(out[0, 0, :, 0], family.predict(theta, inputs))


def test_heads_are_groups_of_a_hierarchy():
    """All heads of a layer with its output projection, row by row."""
    heads, head_dim, row = 3, 2, 2
    tokens, output = normal(SEQUENCES, TOKENS, WIDTH), normal(heads, head_dim, WIDTH, seed=9)
    plain = [drawn(head_dim, head_dim, BIASES[1], seed=seed) for seed in range(heads)]
    expected = sum(
        attended(plain_head, tokens) @ back for plain_head, back in zip(plain, output, strict=True)
    )
    projected = [
        AttentionHead(
            plain_head.query_MD, plain_head.key_MD, plain_head.value_ME @ back, plain_head.bias
        )
        for plain_head, back in zip(plain, output, strict=True)
    ]
    mixtures = [head.as_mixture(TOKENS, row) for head in projected]
    family, theta_EP = heads_as_hierarchy(mixtures)
    assert (family.groups, theta_EP.shape) == (heads, (WIDTH, family.size))
    close(family.predict(theta_EP, tokens.flatten(1)).T, expected[:, row])
    for (_, ours), (_, theirs) in zip(hierarchy_as_heads(family, theta_EP), mixtures, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("gate", ("softmax", "sigmoid", "relu"))
def test_groups_of_constant_weight_are_heads(gate):
    family = Hierarchy(gate, Mixture("sigmoid", "constant", k=2, d=3, temperature=True), groups=3)
    theta, inputs = normal(family.size), normal(6, 3, seed=1)
    outer, inner = family.split(theta[None])
    outer[..., :-1] = 0.0
    theta_EP = family.join(outer, inner)
    heads = hierarchy_as_heads(family, theta_EP)
    total = sum(mixture.predict(parameters, inputs) for mixture, parameters in heads)
    close(total, family.predict(theta_EP, inputs))


def moved(theta_EP: torch.Tensor, channel: int, place: int) -> torch.Tensor:
    theta_EP = theta_EP.clone()
    theta_EP[channel, place] += 1e-6
    return theta_EP


def test_parameters_that_are_no_row_of_attention_are_refused():
    family, theta_EP = drawn(2, 2, BIASES[1]).as_mixture(TOKENS, 1)
    with pytest.raises(ValueError, match=r"^theta must be a row of attention, D=1, but is"):
        AttentionHead.of_mixture(family, theta_EP, 1, head_dim=1)
    with pytest.raises(ValueError, match=r"^theta must be a row of attention, D=3"):
        AttentionHead.of_mixture(family, theta_EP, 0)
    # Every single parameter of either channel matters.
    for place in range(family.size):
        refused = 0
        for channel in range(2):
            try:
                AttentionHead.of_mixture(family, moved(theta_EP, channel, place), 1)
            except ValueError:
                refused += 1
        assert refused == 2, place


SEQUENCE = Mixture("sigmoid", "linear", "partially_quadratic", k=2, d=4)


@pytest.mark.parametrize(
    ("call", "sentence"),
    (
        (lambda: drawn(2, 2, BIASES[0]).as_mixture(3, 3), "row must be from 0 to 2, got 3"),
        (
            lambda: AttentionHead.of_mixture(SEQUENCE, torch.zeros(1, SEQUENCE.size), -1),
            "row must be from 0 to 1, got -1",
        ),
        (
            lambda: AttentionHead.of_mixture(
                replace(SEQUENCE, temperature=True), torch.zeros(1, 37), 0
            ),
            "family must be sigmoid, partially_quadratic and linear",
        ),
        (
            lambda: AttentionHead.of_mixture(replace(SEQUENCE, d=3), torch.zeros(1, 22), 0),
            "family must be sigmoid, partially_quadratic and linear",
        ),
        (
            lambda: AttentionHead.of_mixture(
                Mixture("softmax", "linear", k=2, d=4), torch.zeros(1, 20), 0
            ),
            "family must be sigmoid, partially_quadratic and linear",
        ),
        (
            lambda: AttentionContext.of_mixture(Mixture("sigmoid", "linear"), torch.zeros(1, 8)),
            "family must be sigmoid, linear and constant, without a temperature, got",
        ),
        (
            lambda: AttentionContext.of_mixture(Mixture("sigmoid", "constant"), normal(2, 6)),
            "theta must be attention to a context, but is",
        ),
        (
            lambda: AttentionContext.of_mixture(
                Mixture("sigmoid", "constant", k=3, d=2), normal(1, 12), centring=1.0
            ),
            "theta must be attention to a context, but is",
        ),
        (lambda: heads_as_hierarchy([]), "heads must be one or more of one family, got 0"),
        (
            lambda: hierarchy_as_heads(
                Hierarchy("relu", Mixture("sigmoid", "gelu")), torch.zeros(1, 16)
            ),
            "family must have linear or constant experts, got gelu",
        ),
        (
            lambda: hierarchy_as_heads(
                Hierarchy("relu", Mixture("sigmoid", "constant")), torch.ones(1, 16)
            ),
            "theta: groups must have scores that do not depend on the input",
        ),
    ),
)
def test_bad_input_is_refused(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()
