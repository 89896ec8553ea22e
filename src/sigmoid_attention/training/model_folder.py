"""The folder of a trained language model: all files that resuming and generating need.

FOLDER/config.json             the run's configuration (model, training, data) and provenance
FOLDER/tokenizer.json          the tokenizer
FOLDER/checkpoint.safetensors  the weights and the optimiser's state
"""

import dataclasses
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigmoid_attention.nn.models import DecoderLM, ModelConfig
from sigmoid_attention.training.checkpoint import (
    CURRENT,
    PREVIOUS,
    belongs,
    latest_checkpoint,
    load_checkpoint,
)
from sigmoid_attention.training.data.batches import Batches
from sigmoid_attention.training.data.corpus import Provenance
from sigmoid_attention.training.data.tokenizer import Tokenizer, load_tokenizer
from sigmoid_attention.training.environment import describe_versions
from sigmoid_attention.training.files import Damaged, read_json, reading, write_json
from sigmoid_attention.training.terminal import warn
from sigmoid_attention.training.trainer import TrainConfig, run_configuration

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"


def new_model(config: ModelConfig, seed: int) -> DecoderLM:
    """A decoder whose initial weights are a function of `seed`; the caller's generator stays.

    Both activations draw the same numbers, so the two arms of a seed start from equal weights.

    Example:
        >>> from sigmoid_attention.nn.models import PRESETS
        >>> first = new_model(PRESETS["tiny"], 3).embedding.weight
        >>> second = new_model(PRESETS["tiny"].as_softmax(), 3).embedding.weight
        >>> torch.equal(first, second)
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DecoderLM(config)


def describe_run(
    folder: Path,
    model: DecoderLM,
    batches: Batches,
    config: TrainConfig,
    tokenizer: Tokenizer,
    provenance: Provenance,
    *,
    again: bool = False,
) -> None:
    """Write config.json and tokenizer.json of a run before it starts.

    If there is a checkpoint, only missing and damaged files are written, and none if the checkpoint
    has another configuration, which the trainer then reports. With `again` the configuration is
    written in any case, for a run that continues with more steps.
    """
    described = {
        "run": run_configuration(model, batches, config),
        "provenance": dataclasses.asdict(provenance),
        "versions": describe_versions(),
    }
    latest = latest_checkpoint(folder)
    if latest and not belongs(latest, described["run"]):
        return
    if not (latest and _reads_back(folder / TOKENIZER, load_tokenizer)):
        tokenizer.save(folder / TOKENIZER)
    if again or not (latest and _reads_back(folder / CONFIG, partial(read_run, like=described))):
        write_json(folder / CONFIG, described)


def read_run(path: Path, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """The run that a `config.json` describes; with `like`, that of this description but for steps.

    Raises:
        Damaged: it describes no run of a language model, or another one than `like`.
        OSError: it is not there, or the system does not let it be read.
    """
    described = read_json(path)
    with reading(path):
        run = described["run"]
        ModelConfig.from_dict(run["model"])
        if type(run["train"]["steps"]) is not int:
            raise ValueError("the number of steps is missing")
        if like is not None and _but_for_steps(run) != _but_for_steps(like["run"]):
            raise ValueError("it describes another run than the checkpoint is of")
    return run


def _but_for_steps(run: dict[str, Any]) -> dict[str, Any]:
    # Through JSON and back, so that tuples compare equal to the lists they come back as.
    run = json.loads(json.dumps(run))
    return run | {"train": run["train"] | {"steps": None}}


def _reads_back(path: Path, read: Callable[[Path], Any]) -> bool:
    try:
        read(path)
    except FileNotFoundError:
        warn(f"{path} is missing; it is written again")
    except Damaged as error:
        warn(f"{error}; it is written again")
    else:
        return True
    return False


def load_trained(folder: Path) -> tuple[DecoderLM, Tokenizer]:
    """The model and the tokenizer of a folder, on the CPU, in evaluation mode.

    Raises:
        ValueError: the folder does not hold a trained model, one of its files is damaged, or the
            checkpoint is of another configuration than `config.json`.
    """
    checkpoint = latest_checkpoint(folder)
    for name, there in {
        CONFIG: (folder / CONFIG).exists(),
        TOKENIZER: (folder / TOKENIZER).exists(),
        "checkpoint": checkpoint is not None,
    }.items():
        if not there:
            raise ValueError(
                f"{folder} holds no trained model: there is no {name} in it{_instead(folder)}"
            )
    assert checkpoint is not None
    if checkpoint.name == PREVIOUS:
        warn(f"{folder / CURRENT} is missing; the older {PREVIOUS} is taken")
    tokenizer = load_tokenizer(folder / TOKENIZER)
    run = read_run(folder / CONFIG)
    config = ModelConfig.from_dict(run["model"])
    # Before a model is made of sizes that none can be made of.
    loaded = load_checkpoint(checkpoint, expect=run)
    with reading(checkpoint):
        model = DecoderLM(config)
        loaded.restore_model(model)
    return model.eval(), tokenizer


def _instead(folder: Path) -> str:
    """What to name in place of a folder of `compare` or `convert`."""
    for tokenizer in sorted(folder.glob(f"*/*/{TOKENIZER}"), reverse=True):
        if latest_checkpoint(tokenizer.parent):
            return f"; {shlex.quote(str(tokenizer.parent))} holds one"
    for weights in (*folder.glob("*.safetensors.index.json"), *folder.glob("model*.safetensors")):
        return f"; {weights.name} is of a model of transformers: load it with from_pretrained"
    if (folder / "model" / CONFIG).exists():
        return f"; {folder / 'model'} is a model of transformers: load it with from_pretrained"
    return ""


def encode_prompt(tokenizer: Tokenizer, text: str) -> Tensor:
    """The ids of `text`, (1, N) int64; of the end of a document where it is empty.

    Documents follow one another in training, so that token is what a new one begins after.

    Example:
        >>> from sigmoid_attention.training.data.tokenizer import ByteTokenizer
        >>> [encode_prompt(ByteTokenizer(), text).tolist() for text in ("hi", "")]
        [[[104, 105]], [[256]]]
    """
    return torch.tensor(
        [tokenizer.encode(text.encode(errors="surrogateescape")) or [tokenizer.eos]]
    )
