"""The settings of a comparison, and its presets."""

import dataclasses
import math
import shlex
from dataclasses import dataclass
from typing import Any

from sigmoid_attention.lab.rows import SOFTMAX
from sigmoid_attention.nn.models import PRESETS, ModelConfig
from sigmoid_attention.nn.models.recipes import recipe_settings


@dataclass(frozen=True)
class TextSetting:
    """Language modelling: the decoder of the sigmoid arm and the training of both arms.
    `lr` and `softmax_lr` are the peak learning rates of the sigmoid and of the softmax arm.
    After training, `heldout_bytes` are tested at each length in `times` (multiples of the training
    length); during training, `test_bytes` of them are tested `tests` times. `record_every` is the
    number of steps between measurements inside the network.
    """

    model: ModelConfig
    steps: int
    batch_size: int
    lr: float
    softmax_lr: float
    warmup_steps: int
    heldout_bytes: int
    test_bytes: int
    record_every: int
    checkpoint_every: int
    tests: int = 10
    times: tuple[int, ...] = (1, 2, 4)

    @property
    def test_every(self) -> int:
        """Steps between two tests on held-out text."""
        return max(1, self.steps // self.tests)

    def peak_rate(self, arm: str) -> float:
        """The arm's peak learning rate."""
        return self.softmax_lr if arm == SOFTMAX else self.lr


@dataclass(frozen=True)
class TaskSetting:
    """A retrieval task with its own small decoder; `pairs` is 0 for copying.

    Tested every `test_every` steps on `test_batches` held-out batches.
    """

    model: ModelConfig
    pairs: int
    steps: int
    batch_size: int
    lr: float
    warmup_steps: int
    test_every: int
    test_batches: int


@dataclass(frozen=True)
class CostSetting:
    """The lengths at which the operator is timed, and the number of rounds of every timing."""

    lengths: tuple[int, ...]
    batch_size: int
    rounds: int


@dataclass(frozen=True)
class CompareSetting:
    """Everything that determines a comparison's rows, except the text."""

    preset: str
    data: str
    seeds: int
    first_seed: int
    device: str
    text: TextSetting
    recall: TaskSetting
    copying: TaskSetting
    cost: CostSetting
    recipe: str = "recommended"
    position: str = "rope+alibi"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the command that repeats the comparison."""
        return {"command": self.command(), **dataclasses.asdict(self)}

    def command(self, **changes: Any) -> str:
        """The command that runs the comparison, with other values for some options.

        Example:
            >>> compare_setting("tiny", steps=7).command(seeds=8)
            'sigmoid-attention compare --data stdlib --preset tiny --steps 7 --seeds 8 --device cpu'
        """
        chosen = COMPARE_PRESETS[self.preset][0]
        options = {
            "data": self.data,
            "preset": self.preset,
            "steps": self.text.steps,
            "seeds": self.seeds,
            "device": self.device,
        }
        rates = {"lr": self.text.lr, "softmax-lr": self.text.softmax_lr}
        if rates != {"lr": chosen.lr, "softmax-lr": chosen.softmax_lr}:
            options |= rates
        if self.recipe != CompareSetting.recipe:
            options["recipe"] = self.recipe
        if self.position != recipe_settings(self.recipe)["position"]:
            options["position"] = self.position
        options |= {name.replace("_", "-"): value for name, value in changes.items()}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return shlex.join(["sigmoid-attention", "compare", *words])


def _task_model(seq_len: int, vocab_size: int, **sizes: int) -> ModelConfig:
    return ModelConfig.recipe("recommended", vocab_size=vocab_size, max_seq_len=seq_len, **sizes)


TINY_TASK = {"dim": 32, "layers": 2, "num_heads": 2, "ffn_dim": 64}
SMALL_TASK = {"dim": 64, "layers": 2, "num_heads": 4, "ffn_dim": 128}

# Sizes, learning rates and the verdict's rule were chosen with results of seeds 0 to 9. Comparisons
# use other seeds, so that their verdicts are independent of these choices.
FIRST_SEED = 100
SEEDS = 4

# "tiny" only checks in seconds that everything works. "small" takes minutes on a laptop. "medium"
# needs a GPU, or takes hours.
COMPARE_PRESETS: dict[str, tuple[TextSetting, TaskSetting, TaskSetting, CostSetting]] = {
    "tiny": (
        TextSetting(
            model=PRESETS["tiny"],
            steps=20,
            batch_size=4,
            lr=3e-3,
            softmax_lr=3e-3,
            warmup_steps=5,
            heldout_bytes=2048,
            test_bytes=1024,
            record_every=5,
            checkpoint_every=5,
        ),
        TaskSetting(
            model=_task_model(7, 9, **TINY_TASK),
            pairs=2,
            steps=10,
            batch_size=8,
            lr=3e-3,
            warmup_steps=5,
            test_every=5,
            test_batches=1,
        ),
        TaskSetting(
            model=_task_model(8, 9, **TINY_TASK),
            pairs=0,
            steps=10,
            batch_size=8,
            lr=3e-3,
            warmup_steps=5,
            test_every=5,
            test_batches=1,
        ),
        CostSetting(lengths=(32, 64), batch_size=1, rounds=6),
    ),
    "small": (
        TextSetting(
            # Small, so that minutes are enough steps to learn to copy from the context.
            model=dataclasses.replace(PRESETS["small"], dim=64, ffn_dim=176),
            steps=800,
            batch_size=4,
            lr=1e-2,
            softmax_lr=1e-2,
            warmup_steps=80,
            heldout_bytes=49_152,
            test_bytes=6144,
            record_every=40,
            checkpoint_every=100,
        ),
        TaskSetting(
            model=_task_model(31, 65, **SMALL_TASK),
            pairs=8,
            steps=300,
            batch_size=64,
            lr=5e-3,
            warmup_steps=50,
            test_every=25,
            test_batches=4,
        ),
        TaskSetting(
            model=_task_model(64, 33, **SMALL_TASK),
            pairs=0,
            steps=120,
            batch_size=32,
            lr=1e-2,
            warmup_steps=50,
            test_every=10,
            test_batches=4,
        ),
        CostSetting(lengths=(256, 512, 1024, 2048), batch_size=1, rounds=9),
    ),
    "medium": (
        TextSetting(
            model=PRESETS["medium"],
            steps=3000,
            batch_size=32,
            lr=3e-3,
            softmax_lr=3e-3,
            warmup_steps=200,
            heldout_bytes=1 << 20,
            test_bytes=1 << 17,
            record_every=100,
            checkpoint_every=250,
        ),
        TaskSetting(
            model=_task_model(63, 129, **SMALL_TASK),
            pairs=16,
            steps=2000,
            batch_size=128,
            lr=5e-3,
            warmup_steps=100,
            test_every=100,
            test_batches=8,
        ),
        TaskSetting(
            model=_task_model(256, 65, **SMALL_TASK),
            pairs=0,
            steps=1000,
            batch_size=64,
            lr=1e-2,
            warmup_steps=100,
            test_every=50,
            test_batches=8,
        ),
        CostSetting(lengths=(256, 512, 1024, 2048, 4096), batch_size=4, rounds=15),
    ),
}


# Learned positions are left out: they end at the training length, and tests exceed it.
READS_ON = ("rope", "alibi", "rope+alibi", "sincos", "cape", "none")


def compare_setting(
    preset: str = "small",
    *,
    data: str = "stdlib",
    seeds: int = SEEDS,
    device: str = "cpu",
    steps: int | None = None,
    lr: float | None = None,
    softmax_lr: float | None = None,
    recipe: str = "recommended",
    position: str | None = None,
) -> CompareSetting:
    """The setting called `preset`, in which given values replace those of the preset.

    `steps`, `lr` and `softmax_lr` are for language modelling; `lr` is for both arms if `softmax_lr`
    is not given. `recipe` and `position` are for every model of the comparison.

    Raises:
        ValueError: the preset, recipe or position does not exist; or `seeds`, `steps` or a
            learning rate is not positive.

    Example:
        >>> compare_setting("tiny", steps=7).text.steps
        7
        >>> text = compare_setting("tiny", softmax_lr=0.001).text
        >>> text.peak_rate("softmax"), text.peak_rate("sigmoid")
        (0.001, 0.003)
    """
    if preset not in COMPARE_PRESETS:
        raise ValueError(f"preset must be one of {', '.join(COMPARE_PRESETS)}, got {preset!r}")
    if position is not None and position not in READS_ON:
        raise ValueError(f"position must be one of {', '.join(READS_ON)}, got {position!r}")
    for name, count in (("seeds", seeds), ("steps", steps)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    for name, rate in (("lr", lr), ("softmax_lr", softmax_lr)):
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(f"{name} must be a positive number, got {rate}")
    chosen = recipe_settings(recipe, position)
    text, recall, copying, cost = COMPARE_PRESETS[preset]
    text = dataclasses.replace(
        text,
        model=dataclasses.replace(text.model, **chosen),
        steps=text.steps if steps is None else steps,
        lr=text.lr if lr is None else lr,
        softmax_lr=next(r for r in (softmax_lr, lr, text.softmax_lr) if r is not None),
    )
    recall, copying = (
        dataclasses.replace(task, model=dataclasses.replace(task.model, **chosen))
        for task in (recall, copying)
    )
    position = str(chosen["position"])
    return CompareSetting(
        preset, data, seeds, FIRST_SEED, device, text, recall, copying, cost, recipe, position
    )
