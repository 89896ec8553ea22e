"""The folder of a trained language model, with all files for resuming and for generation.

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
    """A decoder whose initial weights depend on `seed` only; torch's generator is unchanged.

    Both activations draw the same numbers, so both arms of a seed start from equal weights.

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

    If there is a checkpoint, only missing and damaged files are written. If its configuration
    differs, nothing is written, and the trainer reports the difference. With `again` the
    configuration is rewritten, for a run that continues with more steps.
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
    """Read the run described by a `config.json`; with `like`, only the steps may differ from it.

    Raises:
        Damaged: the file describes no run of a language model, or another run than `like`.
        OSError: the file does not exist or cannot be read.
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
    # Through JSON and back: tuples become lists, as in the run that is compared.
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
            checkpoint has another configuration than `config.json`.
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
    # Checked before the model is built, because damaged sizes could not be built.
    loaded = load_checkpoint(checkpoint, expect=run)
    with reading(checkpoint):
        model = DecoderLM(config)
        loaded.restore_model(model)
    return model.eval(), tokenizer


def _instead(folder: Path) -> str:
    """A hint for the error message: the folder to name instead of one of `compare` or `convert`."""
    for tokenizer in sorted(folder.glob(f"*/*/{TOKENIZER}"), reverse=True):
        if latest_checkpoint(tokenizer.parent):
            return f"; {shlex.quote(str(tokenizer.parent))} holds one"
    for weights in (*folder.glob("*.safetensors.index.json"), *folder.glob("model*.safetensors")):
        return f"; {weights.name} is of a model of transformers: load it with from_pretrained"
    if (folder / "model" / CONFIG).exists():
        return f"; {folder / 'model'} is a model of transformers: load it with from_pretrained"
    return ""


def encode_prompt(tokenizer: Tokenizer, text: str) -> Tensor:
    """The token ids of `text`, (1, N) int64; for an empty text the end-of-document token.

    In training each document follows the end-of-document token of the one before it.

    Example:
        >>> from sigmoid_attention.training.data.tokenizer import ByteTokenizer
        >>> [encode_prompt(ByteTokenizer(), text).tolist() for text in ("hi", "")]
        [[[104, 105]], [[256]]]
    """
    return torch.tensor(
        [tokenizer.encode(text.encode(errors="surrogateescape")) or [tokenizer.eos]]
    )
