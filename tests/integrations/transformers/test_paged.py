"""Continuous batching: requests of different lengths, packed, one token a step."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead
from tests.integrations.transformers import checks
from tests.integrations.transformers.architectures import ARCHITECTURES

PROMPTS = [[5, 9, 11, 7, 3, 8, 20, 31], [13, 4, 6], [7] * 5]
NEW = 5


@pytest.mark.parametrize("linear", [False, True], ids=["number", "linear"])
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_continuous_batching_writes_what_each_request_gets_alone(name, linear):
    """Mistral's window is shorter than the longest request, and no block holds a whole one."""
    bias = PerHead(NegLogLength(8), linear=linear)
    model = checks.converted(ARCHITECTURES[name], bias=bias)
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
    batching = ContinuousBatchingConfig(num_blocks=16, block_size=4, max_batch_tokens=16)
    found = model.generate_batch(
        inputs=PROMPTS,
        generation_config=settings,
        continuous_batching_config=batching,
        progress_bar=False,
    )
    assert model.config._attn_implementation == "sigmoid"
    written = {tuple(out.prompt_ids): out.generated_tokens for out in found.values()}
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(NEW):
                following = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(-1)
                tokens = torch.cat([tokens, following[None]], dim=1)
        assert written[tuple(prompt)] == tokens[0, len(prompt) :].tolist()
