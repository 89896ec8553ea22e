"""Tiny random models of three kinds: grouped heads with rotation, fused projections, an encoder."""

import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

VOCABULARY = 64


def llama(layers: int = 2) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return _made(LlamaForCausalLM, config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=24, n_layer=2, n_head=3)
    return _made(GPT2LMHeadModel, config)


def bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=128,
    )
    return _made(BertModel, config)


def _made(kind, config) -> PreTrainedModel:
    """With weights many times as large as usual, so that attention prefers some keys to others."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "emb" not in name:
                parameter.mul_(10)
    return model


KINDS = {"llama": llama, "gpt2": gpt2, "bert": bert}


def ids(batch: int = 2, length: int = 19) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def answer(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)[0]
