"""`sigmoid-attention train`: trains one language model on a text, and saves it in a folder."""

import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable

import torch

from sigmoid_attention.cli.model_options import TrainOptions
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.lab.figure import svg
from sigmoid_attention.lab.loss_figure import loss_figure
from sigmoid_attention.nn.models import PRESETS, ModelConfig
from sigmoid_attention.nn.models.recipes import recipe_settings
from sigmoid_attention.training.checkpoint import CURRENT, FRESH, PREVIOUS
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.environment import resolve_device
from sigmoid_attention.training.files import refuse_occupied, refuse_other_kinds, write_whole
from sigmoid_attention.training.forecast import in_time, refuse_too_large, training_seconds
from sigmoid_attention.training.loss_log import LossLog
from sigmoid_attention.training.model_folder import CONFIG, TOKENIZER
from sigmoid_attention.training.optimizer import schedule
from sigmoid_attention.training.recorder import Recorder
from sigmoid_attention.training.terminal import tell, warn
from sigmoid_attention.training.text_run import TextRun
from sigmoid_attention.training.trainer import TrainConfig

HELDOUT_BYTES = 1 << 18
# The largest sizes for which a model on the meta device can be built, to estimate its memory.
MOST = {"layers": 10_000} | dict.fromkeys(
    ("vocab_size", "dim", "num_heads", "max_seq_len", "batch_size"), 2**24
)
LOSSES, CURVE = "loss.csv", "loss.svg"
# On a CPU there is a warning for longer trainings and for other presets.
SOON_SECONDS, FOR_A_CPU = 600, ("tiny", "small")


def train(options: TrainOptions) -> None:
    """Train, or continue a training, and print the bits per byte on held-out text."""
    for name in ("record", "eval_every"):
        if getattr(options, name) < 0:
            raise ValueError(
                f"{name} must be 0 (none) or a number of steps, got {getattr(options, name)}"
            )
    for name, most in MOST.items():
        if (getattr(options, name) or 0) > most:
            raise ValueError(f"{name} must be at most {most:,}, got {getattr(options, name)}")
    config = model_config(options)
    device = resolve_device(options.device)
    training = TrainConfig(
        steps=options.steps,
        lr=options.lr,
        warmup_steps=options.warmup_steps,
        bf16=options.bf16,
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
        device=str(device),
    )
    recorder = Recorder(options.out / "records", options.record) if options.record else None
    refuse_occupied(options.out, options.resume)
    files = (LOSSES, CURVE, CONFIG, TOKENIZER, CURRENT, PREVIOUS, FRESH)
    refuse_other_kinds(options.out, files=files, folders=("records",))
    # A model too large even with the smallest vocabulary is refused before any text is read.
    smallest = dataclasses.replace(config, vocab_size=ByteTokenizer.vocab_size)
    refuse_too_large(options.preset, smallest, options.batch_size, device)
    corpus = load_corpus(options.data, binaries=options.binaries)
    text = Text.prepare(corpus, config.vocab_size, HELDOUT_BYTES)
    text.check_lengths(config.max_seq_len, config.max_seq_len)
    for line in corpus.notice().splitlines():
        warn(line)
    # A short text may have fewer byte pairs than the requested vocabulary.
    config = dataclasses.replace(config, vocab_size=_vocabulary(text, config.vocab_size))
    refuse_too_large(options.preset, config, options.batch_size, device)
    _warn_of_time(options, config, device)
    run = TextRun.prepare(text, config, training, batch_size=options.batch_size, folder=options.out)

    @functools.cache
    def heldout_bits(_done: int) -> float:
        # Cached by step, because the printed result is the test at the last step.
        return run.bits_per_byte()

    log = LossLog(options.out / LOSSES, options.batch_size * config.max_seq_len)
    result = run.train(
        resume=options.resume,
        recorder=recorder,
        on_step=_logging(log, run, options.eval_every, heldout_bits),
    )
    bits = heldout_bits(result.steps)
    losses = [loss * text.bits_per_nat for loss in result.losses]
    write_whole(options.out / CURVE, svg(loss_figure(log.settle(losses, bits))))
    if options.json:
        print_json(
            {
                "parameters": run.parameters,
                "steps": result.steps,
                "seconds": result.seconds,
                "training_bits_per_byte": losses[-1],
                "heldout_bits_per_byte": bits,
                "losses": log.path,
                "curve": options.out / CURVE,
            }
        )
        return
    print(f"{run.parameters:,} parameters, {result.steps} steps, {result.seconds:.0f} s")
    last = losses[-1]
    print(f"bits a byte: training {last:.4f} in the last step, held-out {bits:.4f}")
    tell(f"losses: {log.path}\ncurve:  {options.out / CURVE}")
    out = shlex.quote(str(options.out))
    tell(f'let it write: sigmoid-attention generate {out} --prompt "..."')


def model_config(options: TrainOptions) -> ModelConfig:
    """The preset with the options that replace its values; ``ValueError`` for unknown names."""
    if options.preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {options.preset!r}")
    changes: dict = {"activation": options.activation}
    if options.recipe is not None:
        changes |= recipe_settings(options.recipe)
    sizes = {name: getattr(options, name) for name in ("vocab_size", "dim", "layers", "num_heads")}
    sizes["max_seq_len"] = options.max_seq_len
    changes |= {name: size for name, size in sizes.items() if size is not None}
    if options.dim is not None:
        # The preset's feed-forward width belongs to its own dim.
        changes["ffn_dim"] = None
    return dataclasses.replace(PRESETS[options.preset], **changes)


def _vocabulary(text: Text, wanted: int) -> int:
    learned = text.tokenizer.vocab_size
    if learned != wanted:
        print(f"vocabulary: {learned:,} tokens, as the text has no more pairs", file=sys.stderr)
    return learned


def _warn_of_time(options: TrainOptions, config: ModelConfig, device: torch.device) -> None:
    if device.type != "cpu":
        return
    seconds = training_seconds(config, options.batch_size, options.steps)
    if options.preset not in FOR_A_CPU or seconds > SOON_SECONDS:
        print(
            f"warning: on this CPU {options.steps:,} steps of {options.preset} take about "
            f"{in_time(seconds)}, by a rough estimate; a GPU is much faster",
            file=sys.stderr,
        )


def _logging(
    log: LossLog, run: TextRun, every: int, heldout_bits: Callable[[int], float]
) -> Callable[[int, float], None]:
    """The trainer's `on_step`: log each step, and test every `every` steps and at the last one."""
    training, first = run.config, True

    def on_step(done: int, loss: float) -> None:
        nonlocal first
        if first:
            run.record_more_steps()
            first = False
        heldout = None
        if done == training.steps or (every and done % every == 0):
            started = time.perf_counter()
            heldout = heldout_bits(done)
            log.pause(time.perf_counter() - started)
        rate = training.lr * schedule(done - 1, training)
        log.add(done, loss * run.text.bits_per_nat, heldout, rate)

    return on_step
