"""What `impl="auto"` tries for a case, from the library's dispatcher; nothing is computed.

The rows show which of it answers: the first that did not refuse.
"""

from contextlib import suppress
from unittest.mock import patch

import torch

from benchmarks.gpu.peers import sigmoid
from benchmarks.operations import OPERATIONS, Case, Inputs
from sigmoid_attention.attention import call_cache, dispatch
from sigmoid_attention.attention.problem import Problem


class _Posed(Exception):
    """The call has come to the dispatcher."""


def tried_by_auto(case: Case, tensors: Inputs, device: torch.device) -> tuple[str, ...]:
    """The implementations that a call tries one after the other, without the definition.

    Empty where the call cannot be made.
    """
    problems: list[Problem] = []

    def capture(problem: Problem, impl: str) -> None:
        problems.append(problem)
        raise _Posed

    learns = OPERATIONS[case.operation].backward
    query, key, value = (
        x.detach().requires_grad_(learns) for x in (tensors.query, tensors.key, tensors.value)
    )
    with (
        patch.object(dispatch, "run", capture),
        # A prepared call skips the dispatcher, and this call is not to be prepared.
        patch.object(call_cache, "call_key", return_value=None),
        # The rows of a case say what is wrong with it.
        suppress(Exception),
    ):
        sigmoid("auto")(case, device)(query, key, value)
    return tuple(
        name
        for problem in problems
        for name in dispatch.order(problem, "auto")
        if name != "reference"
    )
