"""`sigmoid-attention train`: one language model on a text, in a folder of its own."""

import dataclasses

from sigmoid_attention.cli.arguments import Train
from sigmoid_attention.nn.models import PRESETS, ModelConfig
from sigmoid_attention.nn.models.recipes import recipe_settings
from sigmoid_attention.studies.environment import resolve_device
from sigmoid_attention.studies.language import Text
from sigmoid_attention.studies.store import refuse_occupied
from sigmoid_attention.studies.trained import describe_run, new_model
from sigmoid_attention.training.data.batches import TextBatches
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.recorder import Recorder
from sigmoid_attention.training.trainer import TrainConfig
from sigmoid_attention.training.trainer import train as run_training

HELDOUT_BYTES = 1 << 18


def train(asked: Train) -> None:
    """Train, or continue, and say how well the model predicts the text that was held out."""
    if asked.record < 0:
        raise ValueError(f"record must be 0 (none) or a number of steps, got {asked.record}")
    config = model_config(asked)
    device = resolve_device(asked.device)
    training = TrainConfig(
        steps=asked.steps,
        lr=asked.lr,
        warmup_steps=asked.warmup_steps,
        bf16=asked.bf16,
        seed=asked.seed,
        checkpoint_every=asked.checkpoint_every,
        device=str(device),
    )
    recorder = Recorder(asked.out / "records", asked.record) if asked.record else None
    refuse_occupied(asked.out, asked.resume)
    text = Text.prepare(load_corpus(asked.data), config.vocab_size, HELDOUT_BYTES)
    text.check_lengths(config.max_seq_len, config.max_seq_len)
    # The text may be too short for as many byte pairs as were asked for.
    config = dataclasses.replace(config, vocab_size=text.tokenizer.vocab_size)
    batches = TextBatches(text.tokens, config.max_seq_len, asked.batch_size, asked.seed)
    model = new_model(config, asked.seed)
    describe_run(asked.out, model, batches, training, text.tokenizer, text.corpus.provenance)
    result = run_training(
        model, batches, training, out=asked.out, resume=asked.resume, recorder=recorder
    )
    bits = bits_per_byte(model, text.tokenizer, text.heldout, config.max_seq_len, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {result.steps} steps, {result.seconds:.0f} s")
    print(f"training loss {result.losses[-1]:.4f} nats a token, held-out {bits:.4f} bits a byte")
    print(f'let it write: sigmoid-attention generate {asked.out} --prompt "..."')


def model_config(asked: Train) -> ModelConfig:
    """The preset with whatever else was asked for; ``ValueError`` for names there are not."""
    if asked.preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {asked.preset!r}")
    changes: dict = {"activation": asked.activation}
    if asked.recipe is not None:
        changes |= recipe_settings(asked.recipe)
    if asked.vocab_size is not None:
        changes["vocab_size"] = asked.vocab_size
    return dataclasses.replace(PRESETS[asked.preset], **changes)
