"""Losses by place and by context."""

import math

import torch

from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.training import code_lengths
from sigmoid_attention.training.data.corpus import Document
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.evaluate import bits_per_byte

CONFIG = ModelConfig(
    vocab_size=257, dim=16, layers=2, num_heads=2, max_seq_len=8, position="rope", qk_norm="rms"
)
DOCUMENT = Document("text", bytes(range(65, 90)) * 3)


def test_the_bits_of_targets_are_those_of_the_mean_loss():
    torch.manual_seed(0)
    model, tokenizer = DecoderLM(CONFIG), ByteTokenizer()
    windows = code_lengths.whole_windows(tokenizer, [DOCUMENT], 15)
    bits = code_lengths.bits_of_targets(model, windows)
    assert bits.shape == (5, 15)
    # 75 bytes and the end of the document, which is read and not scored.
    scored = bits.flatten()[:74]
    expected = bits_per_byte(model, tokenizer, [DOCUMENT], 15)
    assert math.isclose(scored.mean().item(), expected, rel_tol=1e-5)


def test_seen_contexts_are_those_that_stood_earlier_in_the_window():
    windows = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6], [5, 6, 1, 2, 3, 4, 7, 8]])
    seen = code_lengths.continues_seen(windows, gram=3)
    # After 5 6 7 for the second time, then after 6 7 5 for the second time.
    assert seen[0].tolist() == [False] * 5 + [True, True]
    assert not seen[1].any()


def test_parts_of_the_window_have_equal_shares():
    bits = torch.arange(12.0).expand(3, 12)
    assert code_lengths.by_part(bits, 4) == [1.0, 4.0, 7.0, 10.0]
