"""Runs a conversion: evaluations, both training stages, checkpoints, the converted model.

OUT/setting.json             the setting it was started with
OUT/curve.json               every evaluation so far
OUT/checkpoint.safetensors   the state to continue from after an interruption
OUT/model/                   the converted model and its tokenizer, at the end
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sigmoid_attention.attention import NegLogVisible, RowLSE
from sigmoid_attention.integrations.conversion import Student
from sigmoid_attention.integrations.conversion.student import use_bias
from sigmoid_attention.integrations.transformers import convert
from sigmoid_attention.studies.conversion.curve import NAME, ConversionCurve, Point, read_curve
from sigmoid_attention.studies.conversion.distil import Distillation
from sigmoid_attention.studies.conversion.evaluate import Evaluation
from sigmoid_attention.studies.conversion.parents import Parent
from sigmoid_attention.studies.conversion.setting import ConversionSetting
from sigmoid_attention.studies.conversion.text import TokenSequences
from sigmoid_attention.training.checkpoint import (
    CURRENT,
    latest_checkpoint,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from sigmoid_attention.training.data.corpus import Corpus
from sigmoid_attention.training.environment import describe_machine, describe_versions
from sigmoid_attention.training.files import Damaged, holds_anything, read_json, write_json
from sigmoid_attention.training.progress import StepProgress
from sigmoid_attention.training.signals import ending_later
from sigmoid_attention.training.terminal import warn

MODEL = "model"
PARENT, NAIVE, ROW_LSE, START = "parent", "naive", "row LSE", "start"
CALIBRATED, LAYERS, ALL, FINAL = "calibrated", "layer by layer", "all layers", "final"


@dataclass
class Conversion:
    """One conversion in the folder ``out``; ``run`` starts or continues it.

    In stage two the model is evaluated every ``evaluate_every`` steps. A checkpoint is written
    every ``checkpoint_seconds``. Neither changes the result.

    Raises ``ValueError`` if model, text and setting do not fit together, before anything is
    written, or if the folder belongs to another conversion; ``OSError`` if it cannot be written.
    """

    parent: Parent
    corpus: Corpus
    setting: ConversionSetting
    out: Path
    device: torch.device
    heldout_sequences: int = 16
    lengths: tuple[int, ...] = (256, 1024, 2048)
    evaluate_every: int = 50
    checkpoint_seconds: float = 120.0
    shown: bool = True

    def __post_init__(self) -> None:
        for name in ("heldout_sequences", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        positions = getattr(self.parent.model.config, "max_position_embeddings", None)
        self.setting = setting = self.setting.fitted(positions, predicts=self.parent.causal)
        assert setting.seq_len is not None and setting.batch_size is not None
        self.text = TokenSequences(
            self.parent,
            self.corpus,
            seq_len=setting.seq_len,
            batch_size=setting.batch_size,
            seed=setting.seed,
            repeats=setting.repeats,
        )
        self.evaluation = Evaluation(
            self.parent, self.text, self.heldout_sequences, self.lengths, self.device
        )

    def run(self) -> ConversionCurve:
        setting = self.setting
        self.curve = self._open_curve()
        if self._is_finished():
            warn(f"{self.out} is finished: there is nothing left to do")
            remove_checkpoints(self.out)
            return self.curve
        self.parent.model.requires_grad_(False).to(self.device)  # pyright: ignore[reportArgumentType]
        torch.manual_seed(setting.seed)
        self._evaluate_baselines()
        student = Student(
            self.parent.copy(), form=setting.form, gain=setting.gain, annealed=setting.annealed
        )
        student.model.requires_grad_(True)
        self.distillation = Distillation(
            student, self.parent.model, self.text, setting, self.device
        )
        self.optimizer = self.distillation.optimizer()
        self.losses = self._restore()
        self._saved = self._started = time.monotonic()
        if not self.losses:
            self._evaluate_untrained(student)
        self._train_layer_by_layer()
        self._train_all_layers()
        model = student.finish()
        if not self.curve.has(FINAL, len(self.losses)):
            self._add_point(
                Point(FINAL, len(self.losses), self.curve.seconds, self._full_evaluation(model))
            )
        self._save_model()
        return self.curve

    def _is_finished(self) -> bool:
        """Whether the folder has the final point of the curve and an undamaged model."""
        if not (self.curve.points and self.curve.points[-1].stage == FINAL):
            return False
        model = self.out / MODEL
        if not model.is_dir():
            return False
        known = self.curve.model.items()
        damaged = [model / name for name, digest in known if self._digest(model / name) != digest]
        if damaged:
            warn(f"{damaged[0]} is damaged; the conversion begins anew")
        return not damaged

    def _digest(self, path: Path) -> str | None:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _open_curve(self) -> ConversionCurve:
        path = self.out / NAME
        fault = f"{path} is missing" if latest_checkpoint(self.out) else None
        if path.exists():
            try:
                return read_curve(self.out)
            except Damaged as error:
                fault = str(error)
        if fault:
            # Earlier points of the curve are lost, and only a run from the beginning measures them.
            warn(f"{fault}; the conversion begins anew")
            remove_checkpoints(self.out)
        curve = ConversionCurve(
            {
                "setting": asdict(self.setting),
                "model": self.parent.provenance,
                "data": asdict(self.corpus.provenance),
                "machine": describe_machine(self.device),
                "versions": describe_versions(),
            }
        )
        curve.write(self.out)
        return curve

    def _evaluate_baselines(self) -> None:
        """Evaluate the parent, and two replacements of its softmax without any training."""
        if not self.curve.has(PARENT, 0):
            self._add_point(Point(PARENT, 0, 0.0, self._full_evaluation(self.parent.model)))
        wanted = {NAIVE: NegLogVisible(), ROW_LSE: RowLSE()}
        if all(self.curve.has(stage, 0) for stage in wanted):
            return
        swapped = convert(self.parent.copy(), bias=NegLogVisible())
        for stage, bias in wanted.items():
            use_bias(swapped, bias)
            self._add_point(Point(stage, 0, 0.0, self.evaluation.quick(swapped)))

    def _evaluate_untrained(self, student: Student) -> None:
        """Evaluate the student before training, without and with calibrated biases."""
        self._evaluate(START, 0)
        # Without stage one, this calibration gives the final biases.
        if not self.curve.has(CALIBRATED, 0) or not self.setting.layer_steps:
            self.distillation.calibrate()
        student.set_t(1.0)
        self._evaluate(CALIBRATED, 0)
        student.set_t(0.0)

    def _train_layer_by_layer(self) -> None:
        steps = self.setting.layer_steps
        layers = len(self.distillation.layers)
        finished = len(self.losses) // steps if steps else layers
        if finished < layers:
            with (
                ending_later() as request,
                self._progress_bar(LAYERS, finished * steps, layers * steps) as bar,
            ):
                for losses in self.distillation.by_layer(finished):
                    self.losses += losses
                    self._count_seconds()
                    done = len(self.losses)
                    bar.update(done, losses[-1])
                    ends = bool(request)
                    self._checkpoint(now=ends or done == layers * steps)
                    if ends:
                        kept = f"layer {done // steps} of {layers} is kept in {self.out / CURRENT}"
                        request.kept = kept
                        break
        # Also for a run that was killed between this checkpoint and its evaluation.
        if steps and len(self.losses) == layers * steps:
            self.distillation.student.set_t(1.0)
            self._evaluate(LAYERS, len(self.losses))

    def _train_all_layers(self) -> None:
        setting = self.setting
        before = len(self.distillation.layers) * setting.layer_steps
        first = len(self.losses) - before
        if first >= setting.steps:
            self.distillation.student.set_t(1.0)
            return
        with ending_later() as request, self._progress_bar(ALL, first, setting.steps) as bar:

            def each(loss: float) -> bool:
                self.losses.append(loss)
                self._count_seconds()
                done = len(self.losses) - before
                bar.update(done, loss)
                # Before the checkpoint: a run resumed from it does not repeat this evaluation.
                if done % self.evaluate_every == 0 and done < setting.steps:
                    self._evaluate(ALL, len(self.losses))
                ends = bool(request)
                self._checkpoint(now=ends or done == setting.steps)
                if ends:
                    request.kept = f"step {done} of {setting.steps} is kept in {self.out / CURRENT}"
                return not ends

            self.distillation.all_layers(self.optimizer, first, each)

    @contextmanager
    def _progress_bar(self, label: str, first: int, steps: int) -> Iterator[StepProgress]:
        tokens = self.text.batch_size * self.text.seq_len
        self._started = time.monotonic()
        with StepProgress(label, first, steps, tokens, shown=self.shown) as bar:
            yield bar

    def _count_seconds(self) -> None:
        """Add the time since the last step, without evaluations."""
        now = time.monotonic()
        self.curve.seconds += now - self._started
        self._started = now

    def _evaluate(self, stage: str, step: int) -> None:
        if not self.curve.has(stage, step):
            found = self.evaluation.quick(self.distillation.student.model)
            self._add_point(Point(stage, step, self.curve.seconds, found))
        self._started = time.monotonic()

    def _full_evaluation(self, model: Any) -> dict[str, float]:
        return self.evaluation.thorough(model)

    def _add_point(self, point: Point) -> None:
        self.curve.points.append(point)
        self.curve.write(self.out)

    def _identity(self) -> dict[str, Any]:
        """The settings that a checkpoint must agree with."""
        return {
            "setting": asdict(self.setting),
            "model": self.parent.provenance,
            "data": self.text.describe(),
        }

    def _restore(self) -> list[float]:
        latest = latest_checkpoint(self.out)
        if latest is None:
            return []
        checkpoint = load_checkpoint(latest, expect=self._identity())
        student = self.distillation.student
        checkpoint.restore_training(student.model, self.optimizer)
        return checkpoint.losses

    def _checkpoint(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._saved < self.checkpoint_seconds:
            return
        save_checkpoint(
            self.out / CURRENT,
            self.distillation.student.model,
            self.optimizer,
            losses=self.losses,
            config=self._identity(),
        )
        self.curve.write(self.out)
        self._saved = self._started = time.monotonic()

    def _save_model(self) -> None:
        """Write the model under a temporary name, rename it, and remove the checkpoints."""
        fresh = self.out / f"{MODEL}.new"
        _remove(fresh)
        self.distillation.student.model.save_pretrained(fresh)
        self.parent.tokenizer.save_pretrained(fresh)
        _remove(self.out / MODEL)
        # Before the folder is renamed, because a model without checksums is not verified.
        files = sorted(path for path in fresh.iterdir() if path.is_file())
        self.curve.model = {path.name: str(self._digest(path)) for path in files}
        self.curve.write(self.out)
        os.replace(fresh, self.out / MODEL)
        remove_checkpoints(self.out)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def begin(out: Path, described: dict[str, Any]) -> None:
    """Write the setting of a run, or check that an existing run has the same setting.

    Raises:
        ValueError: the folder was started with another setting; names the field.
        OSError: the folder cannot be written.
    """
    from sigmoid_attention.lab.store import SETTING, first_difference

    path = out / SETTING
    if not path.exists():
        if holds_anything(out):
            raise ValueError(
                f"--resume: {out} holds no conversion (there is no {SETTING} in it); "
                f"nothing was overwritten (name another folder)"
            )
        write_json(path, described)
        return
    difference = first_difference(read_json(path), json.loads(json.dumps(described)))
    if difference:
        raise ValueError(f"--resume: {difference}; nothing was overwritten (name another folder)")
