"""`sigmoid-attention generate`: text from a trained model's folder."""

import sys

import torch

from sigmoid_attention.cli.arguments import Generate
from sigmoid_attention.nn.models import generate as continue_tokens
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.model_folder import encode_prompt, load_trained
from sigmoid_attention.training.terminal import plain

MOST_TOKENS = 1_000_000


def generate(asked: Generate) -> None:
    """Print the prompt and what the model makes of it."""
    if not -(2**63) <= asked.seed < 2**63:
        raise ValueError(f"seed must be a whole number of 64 bits, got {asked.seed}")
    if asked.max_new_tokens > MOST_TOKENS:
        raise ValueError(
            f"max_new_tokens must be at most {MOST_TOKENS:,}, got {asked.max_new_tokens}"
        )
    device = resolve_device(asked.device)
    model, tokenizer = load_trained(asked.folder)
    tokens = continue_tokens(
        model.to(device),
        encode_prompt(tokenizer, asked.prompt).to(device),
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        generator=torch.Generator(device).manual_seed(asked.seed),
        stop_token=tokenizer.eos,
    )
    # A model that writes bytes may end within a character.
    text = tokenizer.decode(tokens[0].tolist()).decode("utf-8", errors="replace")
    # In a file it is what the model wrote; a terminal would obey it.
    print(plain(text, keep="\n\t") if sys.stdout.isatty() else text)
