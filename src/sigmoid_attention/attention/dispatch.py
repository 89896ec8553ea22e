"""Which implementation computes a call: the one place that decides what ``impl="auto"`` takes.

``auto`` tries the fused kernels of the call's device, then, for many scores, PyTorch by tiles, then
the definition, which takes every call. An implementation refuses a call by ``NotImplementedError``;
the reason is logged at DEBUG, and `explain` collects the reasons without running anything.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments, torch_state
from sigmoid_attention.attention.impl import flex, reference_blocks, tiled_ops
from sigmoid_attention.attention.impl.cpu import ops as cpu_ops
from sigmoid_attention.attention.problem import Problem, known

Implementation = Literal["auto", "reference", "tiled", "cpu", "triton", "gluon", "flex"]

_log = logging.getLogger("sigmoid_attention")


class Backend(NamedTuple):
    """An implementation: what computes a problem, and what raises for a problem that it lacks."""

    attend: Callable[[Problem], Tensor]
    refuse: Callable[[Problem], None]


def _triton_modules(problem: Problem) -> list[ModuleType]:
    """The Triton kernels for a problem, the faster first: those for a cache, those for all."""
    try:
        # Triton is there where torch has CUDA; elsewhere it is an optional package.
        from sigmoid_attention.attention.impl.triton import decode_ops, ops
    except ImportError as error:
        raise NotImplementedError(
            "impl: triton is not installed; torch for CUDA brings it along, elsewhere it is "
            "'pip install triton'"
        ) from error
    return [ops] if problem.sequences is None else [decode_ops, ops]


def _attend_by_triton(problem: Problem) -> Tensor:
    *faster, general = _triton_modules(problem)
    for kernels in faster:
        try:
            return kernels.attend(problem)
        except NotImplementedError as refusal:
            _log_refusal("the decoding kernel of triton", refusal)
    return general.attend(problem)


def _refuse_by_triton(problem: Problem) -> None:
    *faster, general = _triton_modules(problem)
    if all(_reason(kernels.refuse, problem) for kernels in faster):
        general.refuse(problem)


def _gluon_module() -> ModuleType:
    try:
        # Gluon is an experimental part of Triton, and a release may lack it.
        from sigmoid_attention.attention.impl.experimental.gluon import ops
    except ImportError as error:
        raise NotImplementedError(
            "impl: gluon needs Triton 3.6 or 3.7; torch for CUDA brings it along, elsewhere it is "
            "'pip install triton'"
        ) from error
    return ops


BACKENDS: dict[Implementation, Backend] = {
    "reference": Backend(reference_blocks.attend, reference_blocks.refuse),
    "tiled": Backend(tiled_ops.attend, tiled_ops.refuse),
    "cpu": Backend(cpu_ops.attend, cpu_ops.refuse),
    "triton": Backend(_attend_by_triton, _refuse_by_triton),
    "gluon": Backend(
        lambda problem: _gluon_module().attend(problem),
        lambda problem: _gluon_module().refuse(problem),
    ),
    "flex": Backend(flex.attend, flex.refuse),
}


def check_impl(impl: str) -> None:
    """Refuse what names no implementation."""
    if isinstance(impl, str) and (impl == "auto" or impl in BACKENDS):
        return
    error = ValueError if isinstance(impl, str) else TypeError
    names = ", ".join(BACKENDS)
    raise error(f"impl must be auto or one of {names}, got {arguments.shown(impl)}")


def fused_kernels(query: Tensor) -> Literal["cpu", "triton"]:
    """The fused kernels that ``auto`` tries first."""
    return "triton" if query.is_cuda else "cpu"


def has_many_scores(batch: int, heads: int, queries: int, keys: int) -> bool:
    """Whether tiles of PyTorch beat the definition.

    One graph serves all lengths of an axis that may change, so it takes what serves the longest.
    """
    return not known(math.prod((batch, heads, queries, keys)) <= reference_blocks.DENSE_SCORES)


def unfused(batch: int, heads: int, queries: int, keys: int) -> Implementation:
    """The implementation that ``impl="auto"`` takes for these sizes where no fused kernel is.

    Example:
        >>> unfused(1, 4, 256, 256), unfused(1, 4, 2048, 2048)
        ('reference', 'tiled')
    """
    return "tiled" if has_many_scores(batch, heads, queries, keys) else "reference"


def order(problem: Problem, impl: Implementation) -> list[Implementation]:
    """The implementations that are tried, in this order; the definition refuses nothing."""
    if impl != "auto":
        return [impl]
    if torch_state.needs_definition():
        return ["reference"]
    first = fused_kernels(problem.query)
    many = has_many_scores(*problem.shape)
    return [first, "tiled", "reference"] if many else [first, "reference"]


def run(problem: Problem, impl: Implementation) -> Tensor:
    """Compute a checked problem with the implementation that is named, or that ``auto`` takes.

    The answer has the layout of the problem's query: (1, H, T, E) for packed sequences.
    """
    check_impl(impl)
    *earlier, last = order(problem, impl)
    for name in earlier:
        try:
            return BACKENDS[name].attend(problem)
        except NotImplementedError as refusal:
            _log_refusal(name, refusal)
    return BACKENDS[last].attend(problem)


def _log_refusal(name: str, refusal: NotImplementedError) -> None:
    # A compiled graph cannot hold a call of a logger.
    if not torch.compiler.is_compiling():
        _log.debug("%s refuses the call: %s", name, refusal)


def _reason(refuse: Callable[[Problem], None], problem: Problem) -> str:
    """Why a problem is refused; empty if it is not."""
    try:
        refuse(problem)
    except NotImplementedError as refusal:
        return str(refusal)
    return ""


class Refusal(NamedTuple):
    """An implementation that does not compute a call, and the reason."""

    implementation: Implementation
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The implementation that computes a call, and why the others do not.

    ``implementation`` is None where the one that ``impl`` names refuses: the call raises then.
    """

    impl: Implementation
    implementation: Implementation | None
    refusals: tuple[Refusal, ...]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.refusals)
        result = self.implementation or "raises NotImplementedError"
        lines = [f"  {name:<{width}}  {reason}" for name, reason in self.refusals]
        return "\n".join([f"impl={self.impl!r}: {result}", *lines])


def explain(problem: Problem, impl: Implementation) -> Explanation:
    """What `run` does with a problem, and why."""
    check_impl(impl)
    reasons: dict[Implementation, str] = {
        name: _reason(backend.refuse, problem) for name, backend in BACKENDS.items()
    }
    tried = order(problem, impl)
    taken: list[Implementation] = [name for name in tried if not reasons[name]]
    chosen = taken[0] if taken else None
    refusals = tuple(
        Refusal(name, reason or _why_passed_over(name, chosen, tried, problem, impl))
        for name, reason in reasons.items()
        if name != chosen
    )
    return Explanation(impl, chosen, refusals)


def _why_passed_over(
    name: Implementation,
    chosen: Implementation | None,
    tried: list[Implementation],
    problem: Problem,
    impl: Implementation,
) -> str:
    """Why an implementation that could compute a problem does not."""
    if impl != "auto":
        return f"the call names impl={impl!r}"
    if name in tried:
        return f"{chosen} comes first"
    if name in ("gluon", "flex"):
        return f"runs only by its name, impl={name!r}"
    if torch_state.needs_definition():
        return "torch.func, forward mode, traces and exports to ONNX get the definition"
    if name == "tiled":
        scores = math.prod(problem.shape)
        many = reference_blocks.DENSE_SCORES
        return f"pays above {many:,} scores, batch x heads x queries x keys are {scores:,}"
    return f"is not for {problem.device.type} tensors"
