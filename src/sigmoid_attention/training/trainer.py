"""The training loop.

A step is a pure function of the parameters, the optimiser's state, torch's generator and the step
number. A checkpoint holds all four, so a run that was killed and resumed ends with bit-identical
parameters (on a CPU; reductions on a GPU may differ in the last digit).
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.nn.balance import LoadBalancer, balanced_routers
from sigmoid_attention.nn.sizes import instance
from sigmoid_attention.training.checkpoint import (
    CURRENT,
    FRESH,
    PREVIOUS,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from sigmoid_attention.training.data.batches import Batches
from sigmoid_attention.training.divergence import Diverged, first_non_finite, non_finite_parameter
from sigmoid_attention.training.files import refuse_other_kinds
from sigmoid_attention.training.optimizer import TrainConfig, decoupled_adamw, schedule
from sigmoid_attention.training.progress import StepProgress
from sigmoid_attention.training.recorder import Recorder
from sigmoid_attention.training.signals import Request, ending_later
from sigmoid_attention.training.terminal import warn

__all__ = ["Diverged", "TrainConfig", "TrainResult", "run_configuration", "train"]

MAY_CHANGE_ON_RESUME = ("checkpoint_every", "device")


@dataclass(frozen=True)
class TrainResult:
    """The result of a call of `train`.

    `losses` has the loss of every step in nats per token, including earlier sessions. `seconds` and
    `tokens_per_second` are of this session alone, which began at step `resumed_from`.
    """

    losses: list[float]
    steps: int
    seconds: float
    tokens_per_second: float
    resumed_from: int


def train(
    model: nn.Module,
    batches: Batches,
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    recorder: Recorder | None = None,
    progress: bool | str = True,
    bits_per_nat: float | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train `model` in place on `batches` for `config.steps` steps.

    The objective is `model.loss(inputs, targets)`. Routers with a `balance_rate` are balanced
    before each optimiser step. With `out`, a checkpoint is written to that folder every
    `config.checkpoint_every` steps and at the end. `resume` continues from it, or starts from the
    beginning if there is none; with more steps, the longer run's schedule holds from there on.
    `progress` may be the bar's label; `bits_per_nat` converts the shown loss from nats per token
    to bits per byte. `on_step` is called with the number of finished steps and the loss. The
    caller's random generators are restored. With `out`, Ctrl-C or SIGTERM takes effect at the end
    of the current step, after a checkpoint is written; a second signal takes effect at once.

    Raises:
        Diverged: the loss, a gradient or a parameter is not finite; names step and module. The
            last checkpoint is kept.
        TypeError: the model or `config` has a wrong type.
        ValueError: `out` holds another run, a run while `resume` is False, or a folder with the
            name of a checkpoint; or the device does not exist.
        OSError: a checkpoint could not be written.

    Example:
        >>> from sigmoid_attention.nn import PRESETS, DecoderLM
        >>> from sigmoid_attention.training.tasks import Copying
        >>> model, data = DecoderLM(PRESETS["tiny"]), Copying(8, 2, vocab_size=9, seed=0)
        >>> train(model, data, TrainConfig(steps=2), progress=False).steps
        2
    """
    instance("model", model, nn.Module, "a module of torch")
    instance("config", config, TrainConfig, "a TrainConfig")
    if out:
        refuse_other_kinds(out, files=(CURRENT, PREVIOUS, FRESH))
    device = _device(config)
    model.to(device).train()
    optimizer = decoupled_adamw(model, config)
    routers = balanced_routers(model)
    if routers:
        LoadBalancer(routers).attach(optimizer)
    configuration = run_configuration(model, batches, config)
    latest = latest_checkpoint(out) if out else None
    if latest and not resume:
        raise ValueError(f"out already holds a run ({latest}): resume it, or name another folder")
    if out:
        out.mkdir(parents=True, exist_ok=True)
    tokens_per_step = batches.batch(0)[0].numel()
    label = progress if isinstance(progress, str) else "train"
    losses: list[float] = []

    with contextlib.ExitStack() as stack:
        # Without a folder there is no checkpoint to write, and an interrupt takes effect at once.
        request = stack.enter_context(ending_later() if out else contextlib.nullcontext(Request()))
        # The caller's random generators are always restored.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(config.seed)
        if latest:
            checkpoint = load_checkpoint(latest, expect=configuration)
            fault = recorder.fault(len(checkpoint.losses)) if recorder else None
            if fault:
                warn(f"{fault}; the run is trained again from its beginning")
            else:
                checkpoint.restore_training(model, optimizer)
                losses = checkpoint.losses
        first = len(losses)
        if recorder:
            stack.enter_context(recorder.watch(model, optimizer, first, resume))
        bar = stack.enter_context(
            StepProgress(
                label, first, config.steps, tokens_per_step, bits_per_nat, shown=bool(progress)
            )
        )
        started = time.perf_counter()

        for step in range(first, config.steps):
            if recorder:
                recorder.begin(step)
            lr = config.lr * schedule(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            inputs, targets = (part.to(device) for part in batches.batch(step))
            random_state = _random_state(device)

            optimizer.zero_grad(set_to_none=True)
            loss = _loss(model, inputs, targets, config)
            loss.backward()
            gradient_norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            losses.append(loss.item())
            if recorder:
                recorder.scalars(
                    loss=losses[-1], gradient_norm=gradient_norm.item(), learning_rate=lr
                )
            if not (math.isfinite(losses[-1]) and gradient_norm.isfinite()):
                if recorder:
                    recorder.flush()
                _set_random_state(device, random_state)
                where = first_non_finite(model, partial(_loss, model, inputs, targets, config))
                raise Diverged(step, losses[-1], where)
            optimizer.step()

            done = step + 1
            bar.update(done, losses[-1])
            if on_step:
                # Before the checkpoint, because a run resumed from it does not measure this step.
                on_step(done, losses[-1])
            ends = bool(request) or done == config.steps
            keeps = ends or done % config.checkpoint_every == 0
            if keeps:
                broken = non_finite_parameter(model)
                if broken:
                    raise Diverged(step, losses[-1], f"the parameter {broken}")
                if recorder:
                    # A part ends at each checkpoint, so that resuming can delete whole parts.
                    recorder.flush()
                if out:
                    _keep(out, model, optimizer, losses, configuration)
                    request.kept = f"step {done} of {config.steps} is kept in {out / CURRENT}"
            # A signal may have arrived while the checkpoint was written.
            if ends or (keeps and request):
                break
        seconds = time.perf_counter() - started
    tokens = (len(losses) - first) * tokens_per_step
    return TrainResult(losses, len(losses), seconds, tokens / seconds, first)


def _keep(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    configuration: dict[str, Any],
) -> None:
    """Write a checkpoint; ``OSError`` if the folder, with its other files, was removed."""
    if not out.is_dir():
        raise OSError(f"the folder {out} was removed during the training; nothing was written")
    save_checkpoint(out / CURRENT, model, optimizer, losses=losses, config=configuration)


def run_configuration(model: nn.Module, batches: Batches, config: TrainConfig) -> dict[str, Any]:
    """The configuration of a run as JSON, which a resumed run must share.

    A model without a `config` is described by the shapes of its parameters.

    Example:
        >>> from sigmoid_attention.training.tasks import Copying
        >>> data = Copying(4, 1, vocab_size=9, seed=0)
        >>> run_configuration(nn.Linear(2, 1), data, TrainConfig(steps=1))["model"]
        {'weight': [1, 2], 'bias': [1]}
    """
    described = getattr(model, "config", None)
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    settings = {k: v for k, v in asdict(config).items() if k not in MAY_CHANGE_ON_RESUME}
    return {
        "model": shapes if described is None else described.to_dict(),
        "train": settings,
        "data": batches.describe(),
    }


def _loss(model: nn.Module, inputs: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.bf16):
        return model.loss(inputs, targets)  # pyright: ignore[reportCallIssue]


def _device(config: TrainConfig) -> torch.device:
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch knows, got {config.device!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {config.device!r}, but torch finds no GPU on this machine")
    return device


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
