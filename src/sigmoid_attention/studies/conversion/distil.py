"""Trains the two stages of a conversion: layer by layer, then all layers at once.

Shapes: B sequences of N tokens, C channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sigmoid_attention.integrations.conversion import (
    LayerStream,
    Student,
    anneal,
    attention_layers,
    damped_error,
    logit_divergence,
    next_token_loss,
)
from sigmoid_attention.studies.conversion.setting import ConversionSetting
from sigmoid_attention.studies.conversion.text import TokenSequences
from sigmoid_attention.training.divergence import Diverged
from sigmoid_attention.training.optimizer import TrainConfig, schedule

WARMUP_STEPS = 10
BETAS = (0.9, 0.95)
CLIP_NORM = 1.0


@dataclass
class Distillation:
    """Distillation of a parent into a student on a text, with a setting."""

    student: Student
    parent: PreTrainedModel
    text: TokenSequences
    setting: ConversionSetting
    device: torch.device

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The student's numbered blocks."""
        return attention_layers(self.student.model, list(self.student.modules))

    def attention_of(self, layer: nn.Module) -> list[nn.Module]:
        """The attention modules inside a block."""
        inside = set(layer.modules())
        return [module for module in self.student.modules.values() if module in inside]

    def batch(self, step: int) -> dict[str, Tensor]:
        return {name: ids.to(self.device) for name, ids in self.text.batch(step).items()}

    def calibrate(self) -> None:
        """Fit the biases of all layers at once, on the rows of the softmax."""
        batches = [self.batch(step) for step in range(self.setting.layer_batches)]
        self.student.calibrate(
            self.student.modules.values(),
            lambda: [self.student.model(**batch) for batch in batches],
        )

    def by_layer(self, finished: int) -> Iterator[list[float]]:
        """Stage one after `finished` layers; yields the losses of each further layer's steps."""
        batches = [self.batch(step) for step in range(self.setting.layer_batches)]
        taught = LayerStream(self.student.model, self.layers, batches)
        names = list(self.student.modules)
        teaching = LayerStream(self.parent, attention_layers(self.parent, names), batches)
        for index, layer in enumerate(self.layers):
            with self._autocast():
                wanted = teaching.outputs(index)
            if index >= finished:
                self._calibrate_layer(taught, index)
                yield self._fit_layer(taught, index, wanted)
            self.student.set_t(1.0, self.attention_of(layer))
            teaching.hidden = wanted
            with self._autocast():
                taught.hidden = taught.outputs(index)

    def _calibrate_layer(self, taught: LayerStream, index: int) -> None:
        self.student.calibrate(self.attention_of(self.layers[index]), lambda: taught.outputs(index))

    def _fit_layer(self, taught: LayerStream, index: int, wanted: list[Tensor]) -> list[float]:
        layer = self.layers[index]
        optimizer = torch.optim.Adam(self._groups(layer, self.setting.layer_lr), betas=BETAS)
        peaks = [group["lr"] for group in optimizer.param_groups]
        losses = []
        for step in range(self.setting.layer_steps):
            self.student.set_t(anneal(step, self.setting.layer_steps), self.attention_of(layer))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (1 - step / self.setting.layer_steps)
            batch = step % len(wanted)
            with self._autocast():
                made_BNC = taught.output(index, batch, taught.hidden[batch])
            loss = damped_error(made_BNC, wanted[batch])
            losses.append(_finite(loss, index * self.setting.layer_steps + step))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return losses

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam for stage two, on everything inside the layers."""
        return torch.optim.Adam(
            [group for layer in self.layers for group in self._groups(layer, self.setting.lr)],
            betas=BETAS,
        )

    def all_layers(
        self, optimizer: torch.optim.Optimizer, first: int, each: Callable[[float], bool]
    ) -> None:
        """Stage two from step `first` on; `each` is called with each loss and stops it by False."""
        setting = self.setting
        warmup = min(WARMUP_STEPS, setting.steps // 2)
        peaks = [group.setdefault("peak", group["lr"]) for group in optimizer.param_groups]
        factors = TrainConfig(max(1, setting.steps), warmup_steps=warmup)
        before = len(self.layers) * setting.layer_steps
        for step in range(first, setting.steps):
            self.student.set_t(1.0 if setting.layer_steps else anneal(step, setting.steps))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, factors)
            optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.batch(before + step))
            value = _finite(loss, before + step)
            loss.backward()
            nn.utils.clip_grad_norm_(
                [x for group in optimizer.param_groups for x in group["params"]], CLIP_NORM
            )
            optimizer.step()
            if not each(value):
                return

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses whose weight is not 0."""
        setting = self.setting
        more = {"output_hidden_states": setting.hidden_weight > 0, "use_cache": False}
        with self._autocast():
            student = self.student.model(**batch, **more)
            if setting.hidden_weight or setting.logit_weight:
                with torch.no_grad():
                    parent = self.parent(**batch, **more)
        loss = torch.zeros((), dtype=torch.float32, device=self.device)
        if setting.hidden_weight:
            hidden = zip(student.hidden_states[1:], parent.hidden_states[1:], strict=True)
            errors = [damped_error(mine_BNC, theirs_BNC) for mine_BNC, theirs_BNC in hidden]
            loss = loss + setting.hidden_weight * torch.stack(errors).mean()
        if setting.logit_weight and "logits" in student:
            divergence = logit_divergence(student.logits, parent.logits, setting.temperature)
            loss = loss + setting.logit_weight * divergence
        if setting.text_weight:
            text_loss = next_token_loss(student.logits, batch["input_ids"])
            loss = loss + setting.text_weight * text_loss
        return loss

    def _groups(self, layer: nn.Module, lr: float) -> list[dict[str, object]]:
        # One number per head. The matrix of a linear bias gets the rate of the other matrices: at
        # `bias_lr` it would move a token's bias by the sum over all channels.
        biases = [
            parameter
            for module in self.attention_of(layer)
            for parameter in module.sigmoid_bias.parameters()  # pyright: ignore
            if parameter.dim() == 1
        ]
        known = {id(parameter) for parameter in biases}
        weights = [parameter for parameter in layer.parameters() if id(parameter) not in known]
        return [{"params": weights, "lr": lr}, {"params": biases, "lr": self.setting.bias_lr}]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bf16)


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise Diverged(step, value, "the loss itself")
    return value
