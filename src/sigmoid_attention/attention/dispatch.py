"""Selection of the implementation of a call, for a given ``impl`` and for ``impl="auto"``.

``auto`` tries the fused kernels of the device first. For many scores it then tries ``tiled``, and
last the definition, ``reference``, which supports every call. An implementation that does not
support a call raises ``NotImplementedError``. The reason is logged at DEBUG level; `explain`
returns all reasons and runs no kernel.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments, torch_state
from sigmoid_attention.attention.impl import flex, reference_blocks, tiled_ops
from sigmoid_attention.attention.impl.cpu import ops as cpu_ops
from sigmoid_attention.attention.problem import Problem
from sigmoid_attention.attention.tracing import known

Implementation = Literal["auto", "reference", "tiled", "cpu", "triton", "gluon", "flex"]

_log = logging.getLogger("sigmoid_attention")

R = TypeVar("R")


def _without_mass(problem: Problem) -> tuple[Tensor, Tensor]:
    raise NotImplementedError(
        "impl: this implementation returns no row mass; auto, cpu, tiled and reference do"
    )


class Backend(NamedTuple):
    """An implementation: ``refuse`` raises for an unsupported problem, ``attend`` computes one.

    ``attend_with_mass`` also returns the sum of each row's weights, (B, H, Q) in the layout of the
    problem's query.
    """

    attend: Callable[[Problem], Tensor]
    refuse: Callable[[Problem], None]
    attend_with_mass: Callable[[Problem], tuple[Tensor, Tensor]] = _without_mass


def _triton_modules(problem: Problem) -> list[ModuleType]:
    """The Triton kernels for a problem, fastest first: for sequences, the decoding kernel first."""
    try:
        # torch for CUDA includes Triton; elsewhere it is an optional package.
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
        # Gluon is an experimental part of Triton that some releases lack.
        from sigmoid_attention.attention.impl.experimental.gluon import ops
    except ImportError as error:
        raise NotImplementedError(
            "impl: gluon needs Triton 3.6 or 3.7; torch for CUDA brings it along, elsewhere it is "
            "'pip install triton'"
        ) from error
    return ops


BACKENDS: dict[Implementation, Backend] = {
    "reference": Backend(
        reference_blocks.attend, reference_blocks.refuse, reference_blocks.attend_with_mass
    ),
    "tiled": Backend(tiled_ops.attend, tiled_ops.refuse, tiled_ops.attend_with_mass),
    "cpu": Backend(cpu_ops.attend, cpu_ops.refuse),
    "triton": Backend(_attend_by_triton, _refuse_by_triton),
    "gluon": Backend(
        lambda problem: _gluon_module().attend(problem),
        lambda problem: _gluon_module().refuse(problem),
    ),
    "flex": Backend(flex.attend, flex.refuse),
}


def check_impl(impl: str) -> None:
    """Raise unless the argument is "auto" or the name of an implementation."""
    if isinstance(impl, str) and (impl == "auto" or impl in BACKENDS):
        return
    error = ValueError if isinstance(impl, str) else TypeError
    names = ", ".join(BACKENDS)
    raise error(f"impl must be auto or one of {names}, got {arguments.shown(impl)}")


def fused_kernels(query: Tensor) -> Literal["cpu", "triton"]:
    """The fused kernels that ``auto`` tries first."""
    return "triton" if query.is_cuda else "cpu"


def has_many_scores(batch: int, heads: int, queries: int, keys: int) -> bool:
    """Whether ``tiled`` is preferred to the definition for these sizes.

    A compiled graph serves all lengths of a dynamic axis, so the longest decides.
    """
    return not known(math.prod((batch, heads, queries, keys)) <= reference_blocks.DENSE_SCORES)


def unfused(batch: int, heads: int, queries: int, keys: int) -> Implementation:
    """The implementation of ``impl="auto"`` for these sizes if no fused kernel is available.

    Example:
        >>> unfused(1, 4, 256, 256), unfused(1, 4, 2048, 2048)
        ('reference', 'tiled')
    """
    return "tiled" if has_many_scores(batch, heads, queries, keys) else "reference"


def order(problem: Problem, impl: Implementation) -> list[Implementation]:
    """The implementations to try, in this order; the definition supports every call."""
    if impl != "auto":
        return [impl]
    if torch_state.needs_definition():
        return ["reference"]
    first = fused_kernels(problem.query)
    many = has_many_scores(*problem.shape)
    return [first, "tiled", "reference"] if many else [first, "reference"]


def run(problem: Problem, impl: Implementation) -> Tensor:
    """Compute a validated problem with the given implementation, or with the choice of ``auto``.

    The output has the layout of the problem's query: (1, H, T, E) for packed sequences.
    """
    return _first_accepted(problem, impl, lambda backend: backend.attend(problem))


def run_with_mass(problem: Problem, impl: Implementation) -> tuple[Tensor, Tensor]:
    """The output as `run` returns it, and the sum of each row's weights, (1, H, T) or (B, H, Q)."""
    return _first_accepted(problem, impl, lambda backend: backend.attend_with_mass(problem))


def _first_accepted(problem: Problem, impl: Implementation, compute: Callable[[Backend], R]) -> R:
    """The result of the first implementation that does not refuse the call."""
    check_impl(impl)
    *earlier, last = order(problem, impl)
    for name in earlier:
        try:
            return compute(BACKENDS[name])
        except NotImplementedError as refusal:
            _log_refusal(name, refusal)
    return compute(BACKENDS[last])


def _log_refusal(name: str, refusal: NotImplementedError) -> None:
    # A compiled graph cannot contain a call of a logger.
    if not torch.compiler.is_compiling():
        _log.debug("%s refuses the call: %s", name, refusal)


def _reason(refuse: Callable[[Problem], None], problem: Problem) -> str:
    """The reason why an implementation does not support a problem; empty if it does."""
    try:
        refuse(problem)
    except NotImplementedError as refusal:
        return str(refusal)
    return ""


class Refusal(NamedTuple):
    """An implementation that is not used for a call, and the reason."""

    implementation: Implementation
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The implementation that computes a call, and the reasons against the others.

    ``implementation`` is None if the implementation named by ``impl`` does not support the call;
    the call raises then.
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
    """The implementation that `run` uses for a problem, and the reasons against the others."""
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
    """The reason why an implementation that supports a problem is not used."""
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
