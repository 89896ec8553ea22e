"""What `impl="auto"` tries for a case: asked of the library itself, and nothing is computed.

Which of it answers is then seen by the rows: the first that did not refuse.
"""

from contextlib import ExitStack, suppress
from importlib import import_module
from unittest.mock import patch

import torch

from benchmarks.gpu.peers import sigmoid
from benchmarks.operations import OPERATIONS, Case, Inputs
from sigmoid_attention.attention import api, call_cache

# Where an implementation begins, as the operator and decoding find it.
ENTRANCES = {
    "impl.experimental.gluon.ops": "gluon",
    "impl.triton.decode_ops": "triton",
    "impl.triton.ops": "triton",
    "impl.cpu.ops": "cpu",
    "impl.tiled_ops": "tiled",
}


class _Last(Exception):
    """Only the definition is left."""


def tried_by_auto(case: Case, tensors: Inputs, device: torch.device) -> tuple[str, ...]:
    """The implementations that a call tries one after the other, the definition left out.

    Empty where the library could not be asked.
    """
    tried: dict[str, None] = {}

    def refusing(name: str):
        def attend(*_):
            tried[name] = None
            raise NotImplementedError(name)

        return attend

    learns = OPERATIONS[case.operation].backward
    given = (x.detach().requires_grad_(learns) for x in (tensors.query, tensors.key, tensors.value))
    with ExitStack() as stack:
        for entrance, name in ENTRANCES.items():
            # An error in it is reported by the rows of that implementation.
            with suppress(Exception):
                module = import_module(f"sigmoid_attention.attention.{entrance}")
                stack.enter_context(patch.object(module, "attend", refusing(name)))
        stack.enter_context(patch.object(api, "_reference", side_effect=_Last))
        # A call that was made before goes straight to its kernel, and this one is not to be kept.
        stack.enter_context(patch.object(call_cache, "look", return_value=None))
        stack.enter_context(torch.set_grad_enabled(learns))
        with suppress(Exception):
            sigmoid("auto")(case, device)(*given)
    return tuple(tried)
