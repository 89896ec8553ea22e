"""The student of a conversion: a copy of the softmax model whose biases are annealed.

Shape letters: H query heads.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sigmoid_attention.attention import arguments
from sigmoid_attention.attention.bias import BiasPolicy, Learned
from sigmoid_attention.integrations.conversion.calibration import Calibration
from sigmoid_attention.integrations.conversion.schedule import (
    DEPTH,
    Annealed,
    DividedByMass,
    SoftmaxStart,
)
from sigmoid_attention.integrations.transformers import (
    PerHead,
    attention_modules,
    convert,
    replace_bias,
)
from sigmoid_attention.integrations.transformers.extra_norms import output_projection
from sigmoid_attention.integrations.transformers.forward import OPERATOR

# The final bias of a head: a linear function of the module's input, or a number.
FORMS = ("linear", "constant")
# What is annealed: the bias, or also a power of the row's mass by which the row is divided.
ANNEALED = ("bias", "mass")


class Student:
    """A converted copy of a softmax model, with biases that are annealed.

    Every attention module has an :class:`Annealed` bias. At t = 0 it computes the softmax, exactly
    or up to the ``gain``; at t = 1 its bias has the final ``form``. ``finish`` returns a plain
    converted model, which ``save_pretrained`` and ``from_pretrained`` store.

    Args:
        model: weights of the parent; changed in place. form: one of ``FORMS``.
        gain: factor on the outputs of attention, so that p / (1 + p / gain) is near p; it is
            multiplied into the output projections.
        annealed: "bias", or "mass" to start as the exact softmax: rows are divided by their mass
            until t = 1/2, and by ever smaller powers of it until t = 1 (:class:`DividedByMass`).
        inputs: a batch for the counted forward of `convert`.

    Raises:
        TypeError, ValueError: an unknown form or ``annealed``, or an error of `convert`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
        >>> parent = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).eval()
        >>> ids = torch.arange(12)[None]
        >>> before = parent(ids).logits
        >>> student = Student(parent, form="linear", gain=100.0)
        >>> bool((student.model(ids).logits - before).abs().max() < 0.01)
        True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        form: str,
        gain: float,
        annealed: str = "bias",
        inputs: Mapping[str, Any] | None = None,
    ) -> None:
        arguments.one_of("form", form, FORMS, f"one of {', '.join(FORMS)}")
        arguments.one_of("annealed", annealed, ANNEALED, f"one of {', '.join(ANNEALED)}")
        start = SoftmaxStart(gain if annealed == "bias" else gain * math.exp(DEPTH))
        convert(model, bias=PerHead(0.0, linear=form == "linear"), inputs=inputs)
        self.model = model
        self.form = form
        self.gain = gain
        self.modules = attention_modules(model)
        for name, module in self.modules.items():
            final = module.sigmoid_bias
            if form == "constant":
                # transformers keeps the number of a head as a plain parameter.
                final = Learned(0.0, module.sigmoid_shape.heads).to(final.device)  # pyright: ignore
            replace_bias(module, Annealed(start, final))  # pyright: ignore[reportArgumentType]
            parent = model.get_submodule(name.rpartition(".")[0])
            scale_attention_output(module, parent, gain)
            if annealed == "mass":
                setattr(module, OPERATOR, DividedByMass(gain))

    def set_t(self, t: float, modules: Iterable[nn.Module] | None = None) -> None:
        """Set t of the biases of all attention modules, or of some."""
        for module in self.modules.values() if modules is None else modules:
            operator = vars(module).get(OPERATOR)
            if operator is not None:
                operator.exponent = min(1.0, 2 - 2 * t)
            moved = t if operator is None else min(1.0, 2 * t)
            module.sigmoid_bias.t = moved  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def calibrate(self, modules: Iterable[nn.Module], run: Callable[[], object]) -> None:
        """Fit the biases of some modules to the rows of the forward passes in ``run``.

        During ``run`` these modules compute the softmax.
        """
        annealed = {module: module.sigmoid_bias for module in modules}
        start = SoftmaxStart(self.gain)
        for module in annealed:
            replace_bias(module, Calibration(start, self.gain))
        with torch.no_grad():
            run()
        for module, bias in annealed.items():
            calibration = module.sigmoid_bias
            assert isinstance(calibration, Calibration) and isinstance(bias, Annealed)
            calibration.solve(bias.final)
            replace_bias(module, bias)

    def finish(self) -> PreTrainedModel:
        """The model with its final biases, without any softmax."""
        for module in self.modules.values():
            vars(module).pop(OPERATOR, None)
            final = module.sigmoid_bias.final  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(final, Learned):
                replace_bias(module, PerHead(0.0))
                with torch.no_grad():
                    module.sigmoid_bias.copy_(final.value)  # pyright: ignore
            else:
                replace_bias(module, final)  # pyright: ignore[reportArgumentType]
        return self.model


def use_bias(model: PreTrainedModel, bias: BiasPolicy) -> None:
    """Give every attention module of a converted model the same policy, for an evaluation."""
    for module in attention_modules(model).values():
        replace_bias(module, bias)


def scale_attention_output(module: nn.Module, parent: nn.Module | None, gain: float) -> None:
    """Multiply the output of attention by ``gain``, in the weights of its output projection."""
    projection = output_projection(module, parent)
    with torch.no_grad():
        projection.weight.mul_(gain)  # pyright: ignore[reportCallIssue]
