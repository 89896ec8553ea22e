"""The windows at test."""

import torch

from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.studies.recipe import measure

CONFIG = ModelConfig(
    vocab_size=257, dim=16, layers=2, num_heads=2, max_seq_len=8, position="rope", qk_norm="rms"
)


def test_a_window_at_test_hides_earlier_tokens_and_is_taken_back():
    torch.manual_seed(0)
    model = DecoderLM(CONFIG).eval()
    tokens = torch.randint(0, 257, (1, 30))
    other = tokens.clone()
    other[:, :10] += 1
    with torch.no_grad(), measure.at_most_seen(model, 4):
        # Two layers of four tokens reach six tokens back.
        assert model(tokens)[:, 20:].equal(model(other % 257)[:, 20:])
    assert [block.attention.window_size for block in model.blocks] == [(-1, -1)] * 2
    with torch.no_grad():
        assert not model(tokens)[:, 20:].equal(model(other % 257)[:, 20:])
