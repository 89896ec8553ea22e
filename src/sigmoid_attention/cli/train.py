"""`sigmoid-attention train`: one language model on a text, in a folder of its own."""

import dataclasses
import functools
import math
import shlex
import sys
import time
from collections.abc import Callable

import torch

from sigmoid_attention.cli.arguments import Train
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.lab.figure import svg
from sigmoid_attention.lab.loss_figure import loss_figure
from sigmoid_attention.lab.store import refuse_occupied
from sigmoid_attention.nn.models import PRESETS, ModelConfig
from sigmoid_attention.nn.models.recipes import recipe_settings
from sigmoid_attention.studies.compare.text import Text
from sigmoid_attention.training.checkpoint import CURRENT, FRESH, PREVIOUS
from sigmoid_attention.training.data.batches import TextBatches
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.evaluate import bits_per_byte
from sigmoid_attention.training.files import refuse_other_kinds, write_whole
from sigmoid_attention.training.forecast import in_time, refuse_too_large, training_seconds
from sigmoid_attention.training.loss_log import LossLog
from sigmoid_attention.training.model_folder import (
    CONFIG,
    TOKENIZER,
    describe_run,
    new_model,
    read_run,
)
from sigmoid_attention.training.optimizer import schedule
from sigmoid_attention.training.recorder import Recorder
from sigmoid_attention.training.terminal import tell, warn
from sigmoid_attention.training.trainer import TrainConfig
from sigmoid_attention.training.trainer import train as run_training

HELDOUT_BYTES = 1 << 18
# Sizes of which a model without numbers can still be made, to tell what it needs.
MOST = {"layers": 10_000} | dict.fromkeys(
    ("vocab_size", "dim", "num_heads", "max_seq_len", "batch_size"), 2**24
)
LOSSES, CURVE = "loss.csv", "loss.svg"
# Longer trainings than this, or larger presets than these, are warned about on a CPU.
SOON_SECONDS, FOR_A_CPU = 600, ("tiny", "small")


def train(asked: Train) -> None:
    """Train, or continue, and say how well the model predicts the text that was held out."""
    for name in ("record", "eval_every"):
        if getattr(asked, name) < 0:
            raise ValueError(
                f"{name} must be 0 (none) or a number of steps, got {getattr(asked, name)}"
            )
    for name, most in MOST.items():
        if (getattr(asked, name) or 0) > most:
            raise ValueError(f"{name} must be at most {most:,}, got {getattr(asked, name)}")
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
    files = (LOSSES, CURVE, CONFIG, TOKENIZER, CURRENT, PREVIOUS, FRESH)
    refuse_other_kinds(asked.out, files=files, folders=("records",))
    # What cannot fit with the smallest vocabulary is refused before any text is read.
    smallest = dataclasses.replace(config, vocab_size=ByteTokenizer.vocab_size)
    refuse_too_large(asked.preset, smallest, asked.batch_size, device)
    corpus = load_corpus(asked.data, binaries=asked.binaries)
    text = Text.prepare(corpus, config.vocab_size, HELDOUT_BYTES)
    text.check_lengths(config.max_seq_len, config.max_seq_len)
    for line in corpus.told().splitlines():
        warn(line)
    # The text may be too short for as many byte pairs as were asked for.
    config = dataclasses.replace(config, vocab_size=_vocabulary(text, config.vocab_size))
    refuse_too_large(asked.preset, config, asked.batch_size, device)
    _warn_of_time(asked, config, device)
    batches = TextBatches(text.tokens, config.max_seq_len, asked.batch_size, asked.seed)
    model = new_model(config, asked.seed)
    describe_run(asked.out, model, batches, training, text.tokenizer, corpus.provenance)

    @functools.cache
    def test(done: int) -> float:
        # Once a step: what is printed in the end was measured now, and is not read from a file.
        return bits_per_byte(model, text.tokenizer, text.heldout, config.max_seq_len, device)

    def begun() -> None:
        # Only now is it known that the checkpoint may be continued, perhaps with more steps.
        if read_run(asked.out / CONFIG)["train"]["steps"] != training.steps:
            parts = (model, batches, training, text.tokenizer, corpus.provenance)
            describe_run(asked.out, *parts, again=True)

    log = LossLog(asked.out / LOSSES, asked.batch_size * config.max_seq_len)
    bits_per_nat = _bits_per_nat(text)
    result = run_training(
        model,
        batches,
        training,
        out=asked.out,
        resume=asked.resume,
        recorder=recorder,
        bits_per_nat=bits_per_nat,
        on_step=_logging(log, training, asked.eval_every, bits_per_nat, test, begun),
    )
    bits = test(result.steps)
    rows = log.settle([loss * bits_per_nat for loss in result.losses], bits)
    write_whole(asked.out / CURVE, svg(loss_figure(rows)))
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": result.steps,
        "seconds": result.seconds,
        "training_bits_per_byte": result.losses[-1] * bits_per_nat,
        "heldout_bits_per_byte": bits,
        "losses": log.path,
        "curve": asked.out / CURVE,
    }
    if asked.json:
        print_json(found)
        return
    print(f"{found['parameters']:,} parameters, {result.steps} steps, {result.seconds:.0f} s")
    last = found["training_bits_per_byte"]
    print(f"bits a byte: training {last:.4f} in the last step, held-out {bits:.4f}")
    tell(f"losses: {log.path}\ncurve:  {asked.out / CURVE}")
    out = shlex.quote(str(asked.out))
    tell(f'let it write: sigmoid-attention generate {out} --prompt "..."')


def model_config(asked: Train) -> ModelConfig:
    """The preset with what else was asked for; ``ValueError`` for names there are not."""
    if asked.preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {asked.preset!r}")
    changes: dict = {"activation": asked.activation}
    if asked.recipe is not None:
        changes |= recipe_settings(asked.recipe)
    sizes = {name: getattr(asked, name) for name in ("vocab_size", "dim", "layers", "num_heads")}
    sizes["max_seq_len"] = asked.max_seq_len
    changes |= {name: size for name, size in sizes.items() if size is not None}
    if asked.dim is not None:
        # The preset's own width of the feed-forward layers is of another dim.
        changes["ffn_dim"] = None
    return dataclasses.replace(PRESETS[asked.preset], **changes)


def _vocabulary(text: Text, asked: int) -> int:
    found = text.tokenizer.vocab_size
    if found != asked:
        print(f"vocabulary: {found:,} tokens, as the text has no more pairs", file=sys.stderr)
    return found


def _bits_per_nat(text: Text) -> float:
    """Turns nats a token into bits a byte: the training text's mean, not each token's."""
    size = sum(len(document.text) for document in text.corpus.train)
    return len(text.tokens) / (size * math.log(2))


def _warn_of_time(asked: Train, config: ModelConfig, device: torch.device) -> None:
    if device.type != "cpu":
        return
    seconds = training_seconds(config, asked.batch_size, asked.steps)
    if asked.preset not in FOR_A_CPU or seconds > SOON_SECONDS:
        print(
            f"warning: on this CPU {asked.steps:,} steps of {asked.preset} take about "
            f"{in_time(seconds)}, by a rough estimate; a GPU is much faster",
            file=sys.stderr,
        )


def _logging(
    log: LossLog,
    training: TrainConfig,
    every: int,
    bits_per_nat: float,
    test: Callable[[int], float],
    begun: Callable[[], None],
) -> Callable[[int, float], None]:
    """For `train`'s `on_step`: the line of each step, with a test at every so many and the last."""
    waiting = [begun]

    def on_step(done: int, loss: float) -> None:
        while waiting:
            waiting.pop()()
        heldout = None
        if done == training.steps or (every and done % every == 0):
            started = time.perf_counter()
            heldout = test(done)
            log.pause(time.perf_counter() - started)
        rate = training.lr * schedule(done - 1, training)
        log.add(done, loss * bits_per_nat, heldout, rate)

    return on_step
