"""`sigmoid-attention generate`: generates text with a trained model."""

import sys

import torch

from sigmoid_attention.cli.model_options import GenerateOptions
from sigmoid_attention.nn.models import generate as continue_tokens
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.model_folder import encode_prompt, load_trained
from sigmoid_attention.training.terminal import plain

MOST_TOKENS = 1_000_000


def generate(options: GenerateOptions) -> None:
    """Print the prompt and the text that the model generates after it."""
    if not -(2**63) <= options.seed < 2**63:
        raise ValueError(f"seed must be a whole number of 64 bits, got {options.seed}")
    if options.max_new_tokens > MOST_TOKENS:
        raise ValueError(
            f"max_new_tokens must be at most {MOST_TOKENS:,}, got {options.max_new_tokens}"
        )
    device = resolve_device(options.device)
    model, tokenizer = load_trained(options.folder)
    tokens = continue_tokens(
        model.to(device),
        encode_prompt(tokenizer, options.prompt).to(device),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        generator=torch.Generator(device).manual_seed(options.seed),
        stop_token=tokenizer.eos,
    )
    # A model over bytes may stop within a UTF-8 character.
    text = tokenizer.decode(tokens[0].tolist()).decode("utf-8", errors="replace")
    # A terminal would execute control characters; a file gets the text unchanged.
    print(plain(text, keep="\n\t") if sys.stdout.isatty() else text)
