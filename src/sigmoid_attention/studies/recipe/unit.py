"""One training run of the recipe study, and the names of what its rows measure."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe.candidates import CANDIDATES
from sigmoid_attention.studies.recipe.setting import RecipeSetting
from sigmoid_attention.training.optimizer import TrainConfig

LOSS = "validation_bits_per_byte"
# The same where no head sees more tokens than in training.
WINDOWED = "validation_bits_per_byte_windowed"
# The same where only the heads without slopes are held to that.
ROTATING = "validation_bits_per_byte_windowed_without_slopes"
# The same on the beginnings of all held-out files, as the trials before this study measured it.
BEGINNINGS = "validation_bits_per_byte_beginnings"
COURSE = "validation_course"
# During training (mechanism.py): the gain of copying, the best score of each layer's heads, and the
# mean share of the logits' variance in the rows' means, before and after centring.
COPYING, PREFIX = "copying_gain", "prefix_matching"
COMMON, CENTRED = "common_share", "common_share_centred"
# At the end: the part of a row's log-sum-exp that its first cumulants leave.
NORMALISER = "normaliser_left"
PART = "bits_by_part"
DIVERGED = "diverged"


class Unit(NamedTuple):
    """One training run."""

    candidate: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.candidate}-lr{self.lr:g}-seed{self.seed}"

    @property
    def arm(self) -> str:
        """The ``arm`` of its rows."""
        return f"{self.candidate} @ {self.lr:g}"

    def training(self, setting: RecipeSetting) -> TrainConfig:
        """Its settings of the trainer: the candidate's own, and else the study's."""
        chosen = {
            "steps": setting.steps,
            "lr": self.lr,
            "warmup_steps": setting.warmup_steps,
            "weight_decay": setting.weight_decay,
            "bf16": setting.bf16,
            "seed": self.seed,
            "checkpoint_every": setting.test_every,
        }
        return TrainConfig(**chosen | CANDIDATES[self.candidate].training)


def while_training(
    setting: RecipeSetting, store: Store, tested: Callable[[int], Iterable[ArmRow]]
) -> Callable[[int, float], None]:
    """The trainer's ``on_step``: stores what ``tested`` measures, but after the last step.

    A run that is continued from its checkpoint finds the earlier tests in the store.
    """

    def on_step(done: int, _loss: float) -> None:
        name = f"step{done:06d}"
        if done % setting.test_every == 0 and done < setting.steps and not store.has(name):
            store.put(name, list(tested(done)))

    return on_step


def units(setting: RecipeSetting) -> Iterator[Unit]:
    """Every run; seeds are the outer loop, so that an interrupted study has complete replicates."""
    for seed in setting.seeds:
        for lr in setting.learning_rates:
            for candidate in setting.candidates:
                yield Unit(candidate, lr, seed)
