"""`diagnose`: runs a few batches, reads the records of the training, and collects the findings."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigmoid_attention.diagnosis import rules
from sigmoid_attention.diagnosis.evidence import Evidence
from sigmoid_attention.diagnosis.finding import Finding
from sigmoid_attention.diagnosis.parameters import held_back
from sigmoid_attention.diagnosis.weights import weights_taken


@dataclass(frozen=True)
class Diagnosis:
    """The findings on a model, and the evidence on each of its attention modules."""

    findings: list[Finding]
    evidence: list[Evidence]


def diagnose(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    longer: Sequence[Any] = (),
    records: Path | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Diagnosis:
    """Find what is wrong with the sigmoid attention of a model.

    Looks for: rows with too large a mass, saturated and dead heads, heads that do the same, keys
    that every query weighs, a mass that drifts beyond the trained length, a learned bias that its
    dtype or the optimiser holds back, and spikes in the training. The limits stand in
    `diagnosis/rules.py`. The model runs in evaluation mode, without gradients.

    Args:
        model: one with this library's ``Attention``, or a converted model of transformers or timm.
        batches: inputs of the trained length, a tensor or the keyword arguments of a call each.
        longer: inputs of twice the trained length; none leaves out the drift.
        records: the folder of a `training.recorder.Recorder`.
        optimizer: the model's optimiser, for the decay of biases.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model has no sigmoid attention, there is no batch, or ``records`` is empty.

    Example:
        >>> from sigmoid_attention.nn.models import PRESETS, DecoderLM
        >>> model = DecoderLM(PRESETS["tiny"])
        >>> tokens = torch.randint(0, 256, (2, model.config.max_seq_len))
        >>> [finding.fault for finding in diagnose(model, [tokens]).findings]
        []
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module of torch, got {type(model).__name__}")
    if not batches:
        raise ValueError("batches must have at least one batch, got none")
    evidence = _evidence(model, batches)
    findings = [finding for each in evidence for finding in rules.weights(each)]
    if longer:
        beyond = {each.name: each for each in _evidence(model, longer)}
        for each in evidence:
            findings += rules.drift(each, beyond[each.name])
    findings += held_back(model, optimizer)
    if records is not None:
        # Records need the lab extra, and the rest of a diagnosis torch alone.
        from sigmoid_attention.diagnosis.history import history

        findings += history(records)
    return Diagnosis(findings, evidence)


@torch.no_grad()
def _evidence(model: nn.Module, batches: Sequence[Any]) -> list[Evidence]:
    collected: dict[str, list[Tensor]] = defaultdict(list)
    training = model.training
    model.eval()
    try:
        with weights_taken(model, lambda name, weights: collected[name].append(weights)) as modules:
            if not modules:
                raise ValueError(
                    f"model: this {type(model).__name__} has no sigmoid attention; convert it, or "
                    f"choose activation='sigmoid'"
                )
            for batch in batches:
                _call(model, batch)
    finally:
        model.train(training)
    return [Evidence.of(name, weights) for name, weights in collected.items()]


def _call(model: Callable[..., Any], batch: Any) -> None:
    if isinstance(batch, Tensor):
        model(batch)
    else:
        model(**batch)
