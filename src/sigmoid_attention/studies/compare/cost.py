"""The cost part of a comparison: time and memory of a training step and of the operator alone.

In each round all arms are timed one after another, in rotating order, so that a slow phase of the
machine affects all arms; ratios are taken within a round. Nothing else runs in the process. If the
sigmoid arm runs in a fused kernel, it is also timed without that kernel.

Shape letters: B batch, H heads, N tokens, D head dim.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.attention import Implementation, sigmoid_attention
from sigmoid_attention.attention.dispatch import unfused
from sigmoid_attention.lab.memory import peak_tensor_bytes
from sigmoid_attention.lab.rows import ARMS, SIGMOID, SOFTMAX, ArmRow
from sigmoid_attention.nn import Attention
from sigmoid_attention.studies.compare.implementation import Operator
from sigmoid_attention.studies.compare.results import UNFUSED
from sigmoid_attention.studies.compare.settings import CompareSetting
from sigmoid_attention.studies.compare.summary import STEP
from sigmoid_attention.studies.compare.text import arm_config
from sigmoid_attention.training.data.batches import TextBatches
from sigmoid_attention.training.data.text import Text
from sigmoid_attention.training.model_folder import new_model
from sigmoid_attention.training.optimizer import decoupled_adamw
from sigmoid_attention.training.trainer import TrainConfig

# A shorter measurement would be dominated by timer resolution and other processes.
SHORTEST_SECONDS = 0.01

Work = Callable[[], object]


def run_cost(
    setting: CompareSetting,
    text: Text,
    device: torch.device,
    operator: Operator,
    progress: Callable[[float], None],
) -> Iterator[ArmRow]:
    """All times and memory; times have one row per round and arm (`step` is the round)."""
    lengths = setting.cost.lengths
    parts = 1 + 2 * len(lengths)
    arms = timed(operator)
    yield from _training_step(setting, text, device, arms)
    progress(1 / parts)
    for i, length in enumerate(lengths):
        operators = _operators(setting, length, device, arms)
        for j, (metric, work) in enumerate(operators.items()):
            for row in by_turns(work, setting.cost.rounds, device):
                yield ArmRow(row.arm, metric, row.value, row.unit, step=row.step, length=length)
            progress((2 + 2 * i + j) / parts)
        for arm in ARMS:
            peak = peak_tensor_bytes(operators["operator_training_seconds"][arm], device)
            yield ArmRow(arm, "operator_peak_bytes", peak, "bytes", length=length)


def timed(operator: Operator) -> tuple[str, ...]:
    """The timed arms; with a fused operator, also the sigmoid arm without it."""
    return (*ARMS, UNFUSED) if operator.path else ARMS


def shortest_seconds(setting: CompareSetting, operator: Operator) -> float:
    """The minimum time of all measurements, which does not depend on the speed of the arms."""
    timings = 1 + 2 * len(setting.cost.lengths)
    return len(timed(operator)) * setting.cost.rounds * timings * SHORTEST_SECONDS


def by_turns(work: dict[str, Work], rounds: int, device: torch.device) -> Iterator[ArmRow]:
    """Seconds of each arm's work in each round, as rows without a metric.

    Work that is too short to time is repeated within a round, and the mean is given.
    """
    repeats = {arm: _repeats(compute, device) for arm, compute in work.items()}
    arms = list(work)
    gc.collect()
    for turn in range(rounds):
        first = turn % len(arms)
        for arm in arms[first:] + arms[:first]:
            seconds = _seconds(work[arm], repeats[arm], device)
            yield ArmRow(arm, "", seconds, "seconds", step=turn)


def _repeats(compute: Work, device: torch.device) -> int:
    # The first call allocates and compiles, so it is not timed.
    compute()
    return math.ceil(SHORTEST_SECONDS / _seconds(compute, 1, device))


def _seconds(compute: Work, repeats: int, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        compute()
    _wait(device)
    return (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _operators(
    setting: CompareSetting, length: int, device: torch.device, timed_arms: Sequence[str]
) -> dict[str, dict[str, Work]]:
    """Each arm's operator, forward alone and forward with backward, on the same tensors."""
    config = setting.text.model
    head_dim = config.head_dim or config.dim // config.num_heads
    shape = (setting.cost.batch_size, config.num_heads, length, head_dim)
    generator = torch.Generator().manual_seed(length)
    query, key, value, upstream = (
        torch.randn(shape, generator=generator).to(device) for _ in range(4)
    )
    inputs = [x.requires_grad_() for x in (query, key, value)]
    bias = config.bias_policy()

    def softmax() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def sigmoid(impl: Implementation) -> Callable[[], Tensor]:
        return lambda: sigmoid_attention(query, key, value, bias=bias, is_causal=True, impl=impl)

    def forward(operator: Callable[[], Tensor]) -> Work:
        def compute() -> None:
            with torch.no_grad():
                operator()

        return compute

    def training(operator: Callable[[], Tensor]) -> Work:
        return lambda: torch.autograd.grad(operator(), inputs, upstream)

    operators = {
        SOFTMAX: softmax,
        SIGMOID: sigmoid("auto"),
        UNFUSED: sigmoid(unfused(*shape[:3], length)),
    }
    return {
        "operator_forward_seconds": {arm: forward(operators[arm]) for arm in timed_arms},
        "operator_training_seconds": {arm: training(operators[arm]) for arm in timed_arms},
    }


def _training_step(
    setting: CompareSetting, text: Text, device: torch.device, arms: Sequence[str]
) -> Iterator[ArmRow]:
    """The whole model's training step in each arm: seconds by round, and memory."""
    steps = {arm: _stepper(setting, text, arm, device) for arm in arms}
    for row in by_turns(steps, setting.cost.rounds, device):
        yield ArmRow(row.arm, STEP, row.value, row.unit, step=row.step)
    for arm in ARMS:

        def two_steps(arm: str = arm) -> None:
            step = _stepper(setting, text, arm, device)
            # The optimiser allocates its state in the first step and holds it in the second.
            step()
            step()

        yield ArmRow(arm, "peak_memory_bytes", peak_tensor_bytes(two_steps, device), "bytes")


def _stepper(setting: CompareSetting, text: Text, arm: str, device: torch.device) -> Work:
    chosen = setting.text
    model = new_model(arm_config(chosen.model, arm), seed=0).to(device)
    if arm == UNFUSED:
        for layer in model.modules():
            if isinstance(layer, Attention):
                length = chosen.model.max_seq_len
                layer.impl = unfused(chosen.batch_size, layer.num_heads, length, length)
    config = TrainConfig(steps=1, lr=chosen.peak_rate(arm), warmup_steps=0)
    optimizer = decoupled_adamw(model, config)
    batches = TextBatches(text.tokens, chosen.model.max_seq_len, chosen.batch_size, seed=0)
    inputs, targets = (part.to(device) for part in batches.batch(0))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(inputs, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()

    return step
