"""What happens inside a decoder's attention: heads that copy, and the common part of the logits.

A copying head finds the token after the last occurrence of the present one (an induction head of
Olsson et al. 2022, arXiv 2209.11895). The common part of a row is the mean of its logits. A softmax
does not see it; in a sigmoid it raises or lowers all weights of the row together. A softmax
subtracts the log-sum-exp from each logit. For a row of n logits this is

    log Σ_j e^(x_j) = log n + κ_1 + κ_2 / 2 + κ_3 / 6 + ...,

with κ the cumulants of its logits: the mean, the variance, the third central moment.

Shape letters: B batch, N tokens, H heads, D head dim.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sigmoid_attention.attention import LearnedCentring
from sigmoid_attention.nn import Attention
from sigmoid_attention.nn.models import DecoderLM
from sigmoid_attention.studies.recipe.measure import attention_layers
from sigmoid_attention.training.code_lengths import bits_of_targets

# Repeated sequences that are read to look for copying heads.
SEQUENCES = 8


@torch.no_grad()
def inputs_of_layers(model: DecoderLM, tokens_BN: Tensor) -> list[Tensor]:
    """What each attention layer of the model reads for these tokens."""
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for layer in attention_layers(model)
    ]
    with evaluating(model):
        model(tokens_BN)
    for hook in hooks:
        hook.remove()
    return inputs


@contextmanager
def evaluating(model: DecoderLM) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def repeated(symbols: Tensor, length: int, seed: int = 0) -> Tensor:
    """Sequences (B, length) of random symbols, the second half of which repeats the first.

    ``symbols`` (any number) are drawn with replacement. Drawn from a text, they are as frequent as
    there, but in no order that could be learned.

    Example:
        >>> tokens = repeated(torch.tensor([3, 4]), length=6)
        >>> torch.equal(tokens[:, :3], tokens[:, 3:])
        True
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, len(symbols), (SEQUENCES, length // 2), generator=generator)
    half = symbols[chosen]
    return torch.cat((half, half), 1)


@torch.no_grad()
def prefix_matching(model: DecoderLM, repeated_BN: Tensor) -> list[Tensor]:
    """For each layer, the prefix-matching score of its heads, (H,), from 0 to 1.

    It is the mean share of a token's weights, in the second half of `repeated` sequences, that lies
    on the token after its first occurrence. A head that weighs all keys alike has about 1.4 / N.
    """
    half = repeated_BN.shape[1] // 2
    scores = []
    inputs = inputs_of_layers(model, repeated_BN)
    with evaluating(model):
        for layer, x in zip(attention_layers(model), inputs, strict=True):
            weights_BHQK = layer.weights(x).double()[:, :, half:]
            on_target = weights_BHQK[:, :, torch.arange(half), torch.arange(1, half + 1)]
            share = on_target / weights_BHQK.sum(-1).clamp(min=1e-30)
            scores.append(share.mean((0, 2)))
    return scores


def copying_gain(model: DecoderLM, repeated_BN: Tensor) -> float:
    """How many bits a token of the second half costs less than one of the first half.

    The sequences are `repeated`; without order, only copying from the context helps.
    """
    half = repeated_BN.shape[1] // 2
    bits = bits_of_targets(model, repeated_BN)
    # The first tokens of the second half do not say yet that it repeats the first.
    start = half + half // 8
    return (bits[:, :half].mean() - bits[:, start:].mean()).item()


@torch.no_grad()
def common_shares(model: DecoderLM, tokens_BN: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer, the share of its logits' variance that lies in the means of the rows, (H,).

    The logits are s q · k over the visible keys, without bias and slopes. The second number of a
    pair is the share after the learned part of the mean has been subtracted; without centred keys
    it is the same as the first.
    """
    shares = []
    for layer, logits, visible in logits_of_layers(model, tokens_BN):
        strength = torch.zeros(layer.num_heads)
        if isinstance(layer.bias, LearnedCentring):
            strength = layer.bias.strength
        centred = logits - strength.double()[:, None, None] * _means(logits, visible)
        shares.append((_share(logits, visible), _share(centred, visible)))
    return shares


@torch.no_grad()
def normaliser_errors(model: DecoderLM, tokens_BN: Tensor, orders: int = 3) -> list[list[Tensor]]:
    """For each layer, how much of the normaliser is left after 0 to ``orders`` cumulants, (H,).

    It is the standard deviation over the rows of log Σ_j e^(x_j) - log n - κ_1 - κ_2 / 2 - ..., in
    nats; a constant is left out, since a bias removes it. Rows of fewer than eight keys are too.
    """
    left = []
    for _, logits, visible in logits_of_layers(model, tokens_BN):
        keys = visible.sum(-1, keepdim=True)
        hidden = logits.masked_fill(~visible, -torch.inf)
        rest = hidden.logsumexp(-1, keepdim=True) - keys.double().log()
        mean = _means(logits, visible)
        of_layer = [rest]
        for order in range(1, orders + 1):
            # The first three cumulants are the mean and the second and third central moment.
            cumulant = mean if order == 1 else _means((logits - mean) ** order, visible)
            of_layer.append(of_layer[-1] - cumulant / math.factorial(order))
        left.append([x[:, :, 7:].transpose(0, 1).flatten(1).std(1) for x in of_layer])
    return left


def logits_of_layers(
    model: DecoderLM, tokens_BN: Tensor
) -> Iterator[tuple[Attention, Tensor, Tensor]]:
    """Each layer with its logits s q · k, (B, H, N, N), and which of them are visible, (N, N)."""
    inputs = inputs_of_layers(model, tokens_BN)
    with evaluating(model):
        for layer, x in zip(attention_layers(model), inputs, strict=True):
            query, key, _ = layer.project(x, 0, None)
            key = key.repeat_interleave(layer.num_heads // layer.num_kv_heads, 1)
            logits = (query @ key.mT).double() * layer.head_dim**-0.5
            yield layer, logits, torch.ones(logits.shape[-2:], dtype=torch.bool).tril()


def _means(logits_BHNN: Tensor, visible_NN: Tensor) -> Tensor:
    """The mean of each row's visible logits, (B, H, N, 1)."""
    return (logits_BHNN * visible_NN).sum(-1, keepdim=True) / visible_NN.sum(-1, keepdim=True)


def _share(logits_BHNN: Tensor, visible_NN: Tensor) -> Tensor:
    """The variance of the row means over all variance, each row weighted by its keys, (H,)."""
    mean = _means(logits_BHNN, visible_NN)
    keys_N1 = visible_NN.sum(-1, keepdim=True)
    all_keys = keys_N1.sum() * logits_BHNN.shape[0]
    overall = (mean * keys_N1).sum((0, 2, 3), keepdim=True) / all_keys
    between = ((mean - overall).square() * keys_N1).sum((0, 2, 3)) / all_keys
    within = ((logits_BHNN - mean).square() * visible_NN).sum((0, 2, 3)) / all_keys
    return between / (between + within).clamp(min=1e-30)
