"""The bias of an attention module, `module.sigmoid_bias`: its kinds, and how it is saved.

Shape letters: H query heads.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sigmoid_attention.attention import (
    BiasPolicy,
    Constant,
    HeadValues,
    Learned,
    NegLogEffectiveLength,
    NegLogLength,
    NegLogVisible,
    RowLSE,
    arguments,
    validation,
)
from sigmoid_attention.attention.keep_fp32 import keep_fp32
from sigmoid_attention.integrations.transformers.recorded_input import (
    record_input,
    recorded_input,
)
from sigmoid_attention.nn.state_bias import InputBias, StateBias

ATTRIBUTE = "sigmoid_bias"
_POLICIES = (Constant, NegLogLength, NegLogVisible, NegLogEffectiveLength, RowLSE)


@dataclass(frozen=True)
class PerHead:
    """A bias for each head: a tensor (heads,) in the state dict of the module.

    It stays in fp32 when the model is cast to less.

    Args:
        init: where it starts: a number, or a policy that needs no row.
        learned: a parameter with a gradient; False for a buffer, as calibration leaves it.
        linear: a :class:`StateBias` that starts there, which a converted model keeps: it also
            depends on what the module is given for the query's token. It is always learned.

    Raises ``ValueError`` for another ``init``, such as a policy that depends on the rows of a call.

    Example:
        >>> from sigmoid_attention import NegLogLength
        >>> PerHead(NegLogLength(1024)).start(heads=2).tolist()
        [-6.931471824645996, -6.931471824645996]
    """

    init: float | BiasPolicy
    learned: bool = True
    linear: bool = False

    def __post_init__(self) -> None:
        init = arguments.scalar(self.init)
        if not isinstance(init, int | float | BiasPolicy):
            kind = type(init).__name__
            raise TypeError(f"PerHead: init must be a number or a bias policy, got {kind}")
        object.__setattr__(self, "init", init)
        for name in ("learned", "linear"):
            given = arguments.switch(f"PerHead: {name}", getattr(self, name))
            object.__setattr__(self, name, bool(given))
        heads = len(self.init.alibi_slopes) if isinstance(self.init, NegLogEffectiveLength) else 1
        self.start(heads)

    def start(self, heads: int) -> Tensor:
        """(heads,) in fp32."""
        return Learned(self.init, heads).value.detach()


ModuleBias = float | BiasPolicy | PerHead


def checked(bias: Any) -> ModuleBias:
    """Validate a bias that a config can hold: Python numbers, no tensors."""
    instead = "PerHead(init) is a bias that learns"
    if type(bias) not in (PerHead, *_POLICIES):
        kinds = ", ".join(policy.__name__ for policy in _POLICIES)
        return arguments.number("bias", bias, f"a number, PerHead or one of {kinds}", instead)
    for name, value in vars(bias).items():
        if isinstance(value, Tensor):
            raise ValueError(
                f"bias: a config holds numbers, got {type(bias).__name__} with {name} "
                f"{arguments.shown(value)}; {instead}"
            )
    return bias


def attach(module: nn.Module, bias: ModuleBias, heads: int, dim: int) -> None:
    """Set the bias of an attention module whose input has ``dim`` channels."""
    if not isinstance(bias, PerHead):
        bias = validation.layer_bias(bias, heads, layer=type(module).__name__)
    # A parameter, a buffer and an attribute may not take each other's place by assignment.
    if hasattr(module, ATTRIBUTE):
        delattr(module, ATTRIBUTE)
    if isinstance(bias, InputBias):
        record_input(module)
    if not isinstance(bias, PerHead):
        setattr(module, ATTRIBUTE, bias)
        return
    parameter = next(module.parameters(), None)
    if parameter is None:
        raise ValueError(
            f"bias: PerHead puts a parameter beside those of a module, and {type(module).__name__} "
            f"has none; a model is quantised after its conversion, not before"
        )
    device = parameter.device
    start_H = bias.start(heads).to(device)
    if bias.linear:
        if dim == 0:
            raise ValueError(
                f"bias: PerHead(linear=True) reads what a module is called with, and "
                f"{type(module).__name__} is not called with hidden states"
            )
        attach(module, StateBias(start_H, dim), heads, dim)
        return
    keep_fp32(module, ATTRIBUTE)
    if bias.learned:
        module.register_parameter(ATTRIBUTE, nn.Parameter(start_H))
    else:
        module.register_buffer(ATTRIBUTE, start_H)


def operator_bias(module: nn.Module) -> float | BiasPolicy:
    """The bias in the form that the operator accepts."""
    # A parameter is looked up where modules keep them: by way of getattr it would take longer than
    # a short call's other checks together.
    bias = module._parameters.get(ATTRIBUTE)
    if bias is not None:
        return HeadValues(bias)
    bias = getattr(module, ATTRIBUTE, None)
    if bias is None:
        raise ValueError(
            f"attn_implementation: {type(module).__name__} runs as sigmoid attention without a "
            f"bias; convert the model first, e.g. convert(model, bias=NegLogLength(1024))"
        )
    if isinstance(bias, InputBias):
        return bias.with_input(recorded_input(module))
    return HeadValues(bias) if isinstance(bias, Tensor) else bias


def to_json(bias: ModuleBias) -> dict[str, Any]:
    """The bias as an entry of a config; values per head stay in the state dict."""
    if isinstance(bias, PerHead):
        own = {"learned": bias.learned, "linear": bias.linear}
        return {"policy": "PerHead", "init": to_json(bias.init), **own}
    if not isinstance(bias, BiasPolicy):
        bias = Constant(float(bias))
    assert dataclasses.is_dataclass(bias)
    # numpy's scalars, which JSON has not, are numbers to a policy.
    fields = {name: arguments.scalar(value) for name, value in vars(bias).items()}
    return {"policy": type(bias).__name__, **fields}


def from_json(entry: dict[str, Any]) -> BiasPolicy | PerHead:
    """Read the entry that ``to_json`` wrote."""
    if entry.get("policy") == "PerHead":
        return PerHead(_policy(entry["init"]), entry["learned"], entry["linear"])
    return _policy(entry)


def _policy(entry: dict[str, Any]) -> BiasPolicy:
    fields = dict(entry)
    name = fields.pop("policy", None)
    known = {policy.__name__: policy for policy in _POLICIES}
    if name not in known:
        raise ValueError(f"sigmoid_attention: a bias policy {name!r} is not known to this version")
    return known[name](**fields)
