"""Saves and loads checkpoints: one safetensors file with the complete state of a training run.

Tensors are named `model/<name>`, `optimizer/<parameter>/<state>`, `rng/<device>` and `losses`;
the step, the configuration and a checksum are JSON in the header. Nothing is unpickled.
"""

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.extras import lab_imports
from sigmoid_attention.training.files import could_not_write, refuse_endless, write_whole

with lab_imports("sigmoid_attention.training"):
    import safetensors
    import safetensors.torch

CURRENT = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
FRESH = f"{CURRENT}.new"
HEADER = "sigmoid-attention checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file: finished steps, the run's configuration, and all tensors by name."""

    path: Path
    step: int
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def losses(self) -> list[float]:
        """The training loss of every finished step."""
        return self.tensors["losses"].tolist()

    def restore_model(self, model: nn.Module) -> None:
        """Copy the parameters and buffers into `model`, which must have the same shapes."""
        with torch.no_grad():
            for name, tensor in _model_tensors(model).items():
                tensor.copy_(self.tensors[f"model/{name}"])

    def restore_training(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Restore the model, the optimiser and torch's global random generators."""
        self.restore_model(model)
        for name, parameter in model.named_parameters():
            prefix = f"optimizer/{name}/"
            for key, tensor in self.tensors.items():
                if key.startswith(prefix):
                    # Adam's step count lives on the CPU even when the parameter does not.
                    kept = tensor if tensor.ndim == 0 else tensor.to(parameter.device)
                    optimizer.state[parameter][key.removeprefix(prefix)] = kept
        torch.set_rng_state(self.tensors["rng/cpu"])
        device = next(model.parameters()).device
        if device.type == "cuda" and "rng/cuda" in self.tensors:
            torch.cuda.set_rng_state(self.tensors["rng/cuda"], device)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    losses: Sequence[float],
    config: dict[str, Any],
) -> None:
    """Write the run's state to `path`, whole or not at all; `losses` has one per finished step.

    An existing checkpoint is renamed to `<stem>.previous.safetensors`.

    Raises:
        OSError: the disk is full or not writable; the old checkpoint is kept.
    """
    tensors = {f"model/{name}": tensor for name, tensor in _model_tensors(model).items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = tensor
    tensors["rng/cpu"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"kind": HEADER, "step": len(losses), "config": config}
    header["crc32"] = _checksum(tensors, header)
    content = safetensors.torch.save(tensors, {"header": json.dumps(header)})

    fresh = path.with_name(f"{path.name}.new")
    write_whole(fresh, content)
    # The old checkpoint is renamed after the new one is on disk. So one of the two names always
    # holds a whole checkpoint, which `latest_checkpoint` finds.
    if path.exists():
        _move(path, path.with_name(f"{path.stem}.previous{path.suffix}"))
    _move(fresh, path)


def _move(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        raise could_not_write(target, error) from error


def load_checkpoint(path: Path, *, expect: dict[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint, onto the CPU.

    Raises:
        ValueError: the file is damaged or not a checkpoint, or its configuration differs from
            `expect`; names the first field that differs.
        OSError: the file does not exist or cannot be read.
    """
    with _opened(path) as file:
        header = _header(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["crc32"] not in (_checksum(tensors, header), _checksum(tensors)):
            raise ValueError("the checksum does not fit the content")
        checkpoint = Checkpoint(Path(path), header["step"], header["config"], tensors)
        if not isinstance(checkpoint.config, dict) or checkpoint.step != len(tensors["losses"]):
            raise ValueError("its parts do not fit each other")
    if expect is not None:
        _refuse_difference(checkpoint, expect)
    return checkpoint


def belongs(path: Path, config: dict[str, Any]) -> bool:
    """Whether a run of this configuration may continue from the checkpoint; reads only its header.

    Raises the errors of `load_checkpoint` if the header cannot be read.
    """
    with _opened(path) as file:
        return _difference(_header(file)["config"], config) is None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    refuse_endless(path)
    # For a folder or an unreadable file, `open` raises the operating system's own message.
    with open(path, "rb"):
        pass
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (
        *(safetensors.SafetensorError, OSError, TypeError, LookupError),
        *(ValueError, AttributeError, RecursionError),
    ) as error:
        raise ValueError(
            f"{path} is damaged or not a checkpoint of this library ({error}); "
            f"without it a resumed run takes {PREVIOUS}, if there is one"
        ) from error


def _header(file: Any) -> dict[str, Any]:
    header = json.loads(file.metadata()["header"])
    if header["kind"] != HEADER:
        raise ValueError("it is of another kind")
    return header


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder; None if there is none."""
    candidates = (folder / CURRENT, folder / PREVIOUS)
    return next((path for path in candidates if path.exists()), None)


def remove_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints, so that it starts from the beginning."""
    for name in (CURRENT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def _refuse_difference(checkpoint: Checkpoint, expect: dict[str, Any]) -> None:
    differs = _difference(checkpoint.config, expect)
    if differs is None:
        return
    field, there, here = differs
    if field.endswith("sha256"):
        raise ValueError(f"{checkpoint.path} was trained on another text than this --data")
    raise ValueError(
        f"{checkpoint.path} belongs to another configuration: "
        f"{field} is {there!r} there and {here!r} here"
    )


def _difference(made: dict[str, Any], expect: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field in which two configurations differ, and its two values.

    More steps are no difference: a continued run then follows the schedule of the longer run.
    """
    theirs, ours = _flatten(made), _flatten(json.loads(json.dumps(expect)))
    for field in [*ours, *theirs]:
        there, here = theirs.get(field, "absent"), ours.get(field, "absent")
        numbers = isinstance(here, int) and isinstance(there, int)
        if there != here and not (field == "train.steps" and numbers and there < here):
            return field, there, here
    return None


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once, as safetensors stores a tensor once."""
    by_identity = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_identity.setdefault(id(tensor), (name, tensor))
    return dict(by_identity.values())


def _checksum(tensors: dict[str, Tensor], header: dict[str, Any] | None = None) -> int:
    """The CRC-32 of names and content; with `header` also of the header, types and shapes.

    Checkpoints of earlier versions have the checksum without the header.
    """
    total = 0
    if header is not None:
        described = {name: value for name, value in header.items() if name != "crc32"}
        total = zlib.crc32(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        entry = (
            name if header is None else f"{name} {tensors[name].dtype} {list(tensors[name].shape)}"
        )
        total = zlib.crc32(entry.encode(), total)
        data = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        total = zlib.crc32(data, total)
    return total
