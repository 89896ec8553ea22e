"""The retrieval part of a comparison: associative recall and copying.

Later publications suspect that, at equal language-modelling loss, sigmoid attention is worse at
retrieval. So retrieval is tested separately, with one small decoder per task, arm and seed.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sigmoid_attention.lab.rows import ArmRow
from sigmoid_attention.lab.store import Store, step_parts
from sigmoid_attention.studies.compare.settings import TaskSetting
from sigmoid_attention.studies.compare.text import arm_config, on_the_way
from sigmoid_attention.training.evaluate import accuracy
from sigmoid_attention.training.model_folder import new_model
from sigmoid_attention.training.tasks import Copying, MultiQueryRecall
from sigmoid_attention.training.trainer import TrainConfig, train

RECALL = "recall"
COPYING = "copy"


def task_batches(setting: TaskSetting, seed: int) -> MultiQueryRecall | Copying:
    """The task's data for a seed: recall of `pairs`, or copying if `pairs` is 0.

    Example:
        >>> from sigmoid_attention.studies.compare.settings import compare_setting
        >>> task_batches(compare_setting("tiny").copying, seed=0).batch(0)[0].shape
        torch.Size([8, 8])
    """
    n, vocabulary = setting.model.max_seq_len, setting.model.vocab_size
    if setting.pairs:
        return MultiQueryRecall(n, setting.batch_size, setting.pairs, vocabulary, seed)
    return Copying(n, setting.batch_size, vocabulary, seed)


def run_task(
    setting: TaskSetting,
    task: str,
    arm: str,
    seed: int,
    folder: Path,
    device: torch.device,
    store: Store,
    progress: Callable[[float], None],
) -> Iterator[ArmRow]:
    """Train on the task and yield the final accuracy; store the accuracy of every earlier test.

    Raises ``Diverged``.
    """
    tests = step_parts(f"{task}-{arm}-seed{seed}", setting.steps, setting.test_every)
    store.refuse_gaps(folder, tests, setting.test_every)
    batches = task_batches(setting, seed)
    heldout = batches.heldout(setting.test_batches)
    model = new_model(arm_config(setting.model, arm), seed)
    config = TrainConfig(
        steps=setting.steps,
        lr=setting.lr,
        warmup_steps=setting.warmup_steps,
        seed=seed,
        checkpoint_every=2 * setting.test_every,
        device=str(device),
    )

    def tested(done: int) -> ArmRow:
        share = accuracy(model, heldout)
        return ArmRow(arm, f"{task}_accuracy", share, "fraction", seed, step=done)

    name = f"{task}-{arm}-seed{seed}"
    on_step = on_the_way(store, name, setting.steps, setting.test_every, tested, progress)
    train(model, batches, config, out=folder, resume=True, progress=False, on_step=on_step)
    yield tested(setting.steps)
