"""The model of the trials with centred keys is the library's, with options alone.

The trials added their terms to a plain layer by hand; the formulas here are theirs.
"""

import torch

from sigmoid_attention.attention import BiasPolicy
from sigmoid_attention.nn import DecoderLM, ModelConfig, alibi_slopes

SIZES = dict(vocab_size=31, dim=24, layers=3, num_heads=4, ffn_dim=20, max_seq_len=16)
N, H = 16, 4


class Added(BiasPolicy):
    """The bias (B, H, N, 1) of the trials."""

    def __init__(self, value):
        self.value = value

    def resolve(self, rows):
        return self.value


def slopes_and_log_lengths():
    """Slopes on every second head, and the logarithm of each head's effective length."""
    slopes = torch.where(torch.arange(H) % 2 == 0, alibi_slopes(H), torch.zeros(()))
    length = (1 - torch.exp(-slopes * N)) / (1 - torch.exp(-slopes.clamp(min=1e-9)))
    return slopes, torch.where(slopes > 0, length, torch.tensor(float(N))).log()


def centre_by_hand(attention, strength, b, slopes):
    """Make a plain layer with rotations the layer of the trials."""
    options, operate = attention._options, attention._operate

    def with_slopes(query, attn_mask):
        return {**options(query, attn_mask), "alibi_slopes": slopes}

    def centred(query, key, value, bias, attn_mask, dropout_p):
        count = torch.arange(1, key.shape[2] + 1, dtype=key.dtype).view(1, 1, -1, 1)
        common = (query * (key.cumsum(2) / count)).sum(-1, keepdim=True)
        common = strength.view(1, -1, 1, 1) * common * attention.head_dim**-0.5
        added = Added(b.view(1, -1, 1, 1) - common)
        return operate(query, key, value, added, attn_mask, dropout_p)

    attention._options, attention._operate = with_slopes, centred


def test_centred_keys_with_rope_and_alibi():
    common = dict(norm_placement="hybrid", qk_norm="rms")
    config = ModelConfig(
        **SIZES,
        **common,
        position="rope+alibi",
        bias="neg_log_effective_length",
        learn_bias=True,
        centred_keys=True,
    )
    model = DecoderLM(config)
    by_hand = DecoderLM(ModelConfig(**SIZES, **common, position="rope"))
    by_hand.load_state_dict(model.state_dict(), strict=False)
    slopes, log_length = slopes_and_log_lengths()
    for block, plain in zip(model.blocks, by_hand.blocks, strict=True):
        strength = block.attention.bias.strength
        strength.data += 0.3 * torch.randn(H)
        learned = block.attention.bias.bias.value
        torch.testing.assert_close(learned.detach(), -log_length)
        learned.data += 0.3 * torch.randn(H)
        centre_by_hand(plain.attention, strength, learned, slopes)
    tokens = torch.randint(31, (2, N))
    torch.testing.assert_close(model(tokens), by_hand(tokens), atol=2e-5, rtol=1e-5)
