"""Rename the state dict of a `MoE` layer to the layouts of other projects, and back.

The numbers stay the same; they are renamed, split or stacked. With E experts of F
hidden channels for tokens of C, ours and theirs hold

    experts.gate_up (E, 2 F, C)    transformers, gates above ups
    experts.gate, experts.up       each (E, F, C) at torchtitan, or (F, C) an expert on the hub
    experts.down (E, C, F)         everywhere
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sigmoid_attention.attention import arguments

_SHARED_OF_DEEPSEEK = {
    "router.weight": "gate.weight",
    "router.correction_bias": "gate.e_score_correction_bias",
    "shared.gate.weight": "shared_experts.gate_proj.weight",
    "shared.up.weight": "shared_experts.up_proj.weight",
    "shared.down.weight": "shared_experts.down_proj.weight",
}
_SHARED_OF_TORCHTITAN = {
    "router.weight": "router.gate.weight",
    "shared.gate.weight": "shared_experts.w1.weight",
    "shared.up.weight": "shared_experts.w3.weight",
    "shared.down.weight": "shared_experts.w2.weight",
}

# Our names to theirs; {} stands for the number of an expert that has tensors of its own.
LAYOUTS: dict[str, dict[str, str]] = {
    # Modules of transformers >= 5.
    "deepseek": {
        **_SHARED_OF_DEEPSEEK,
        "experts.gate_up": "experts.gate_up_proj",
        "experts.down": "experts.down_proj",
    },
    # Published checkpoints, and transformers before 5.
    "deepseek_checkpoint": {
        **_SHARED_OF_DEEPSEEK,
        "experts.gate": "experts.{}.gate_proj.weight",
        "experts.up": "experts.{}.up_proj.weight",
        "experts.down": "experts.{}.down_proj.weight",
    },
    "torchtitan": {
        **_SHARED_OF_TORCHTITAN,
        "router.correction_bias": "expert_bias",
        "experts.gate": "experts.w1",
        "experts.up": "experts.w3",
        "experts.down": "experts.w2",
    },
    # Its names since it writes shapes into them.
    "torchtitan_2026": {
        **_SHARED_OF_TORCHTITAN,
        "router.correction_bias": "expert_bias_E",
        "experts.gate": "routed_experts.inner_experts.w1_EFD",
        "experts.up": "routed_experts.inner_experts.w3_EFD",
        "experts.down": "routed_experts.inner_experts.w2_EDF",
    },
}


def to_layout(state: Mapping[str, Tensor], layout: str, *, prefix: str = "") -> dict[str, Tensor]:
    """A `MoE` layer's state dict under another project's names, each after ``prefix``.

    Raises ``TypeError`` for a wrong type, and ``ValueError`` for an unknown layout and for a tensor
    that it has no name for (GELU experts, quadratic affinities, intercepts).

    Example:
        >>> from sigmoid_attention.nn import MoEConfig
        >>> layer = MoEConfig(experts=2, hidden=3, top_k=1, balance_rate=1e-3).build(dim=4)
        >>> sorted(to_layout(layer.state_dict(), "torchtitan"))
        ['expert_bias', 'experts.w1', 'experts.w2', 'experts.w3', 'router.gate.weight']
    """
    arguments.instance("state", state, Mapping, "a state dict")
    names = _names(layout)
    ours = dict(state)
    if "experts.gate_up" in ours and "experts.gate_up" not in names:
        ours["experts.gate"], ours["experts.up"] = ours.pop("experts.gate_up").chunk(2, 1)
    theirs = {}
    for own, tensor in ours.items():
        if own not in names or (own == "experts.up" and "experts.gate" not in ours):
            raise ValueError(f"state: layout {layout!r} has no name for {own}")
        if "{}" in names[own]:
            each = {names[own].format(number): one for number, one in enumerate(tensor)}
        else:
            each = {names[own]: tensor}
        theirs |= {prefix + name: one for name, one in each.items()}
    return theirs


def from_layout(
    state: Mapping[str, Tensor], layout: str | None = None, *, prefix: str = ""
) -> dict[str, Tensor]:
    """The state dict of a `MoE` layer, from what a state dict holds after ``prefix``.

    ``layout`` None finds it by the names. Raises ``TypeError`` for a wrong type, and
    ``ValueError`` for an unknown layout, a name that does not belong to it, and experts of which a
    part is missing.

    Example:
        >>> from sigmoid_attention.nn import MoEConfig
        >>> layer = MoEConfig(experts=2, hidden=3, top_k=1).build(dim=4)
        >>> theirs = to_layout(layer.state_dict(), "deepseek_checkpoint", prefix="layers.3.mlp.")
        >>> layer.load_state_dict(from_layout(theirs, prefix="layers.3.mlp."))
        <All keys matched successfully>
    """
    arguments.instance("state", state, Mapping, "a state dict")
    left = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    layout = _layout_of(left, prefix) if layout is None else layout
    ours = {}
    for own, theirs in _names(layout).items():
        each = [theirs] if theirs in left else _numbered(left, theirs)
        tensors = [left.pop(name) for name in each]
        if tensors:
            ours[own] = torch.stack(tensors) if "{}" in theirs else tensors[0]
        elif own == "router.weight" or own.startswith("experts."):
            raise ValueError(f"state: {prefix}{theirs} is missing, which layout {layout!r} has")
    if left:
        raise ValueError(f"state: layout {layout!r} has no {prefix}{min(left)}")
    if "experts.gate" in ours:
        halves = ours.pop("experts.gate"), ours.pop("experts.up")
        ours["experts.gate_up"] = torch.cat(halves, 1)
    return ours


def _names(layout: str) -> dict[str, str]:
    arguments.one_of("layout", layout, LAYOUTS, f"one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def _layout_of(state: Mapping[str, Tensor], prefix: str) -> str:
    """Recognise a layout by its name for the first down projection, which is unique."""
    for layout, names in LAYOUTS.items():
        if names["experts.down"].format(0) in state:
            return layout
    wanted = ", ".join(names["experts.down"].format(0) for names in LAYOUTS.values())
    raise ValueError(f"state: no layout fits the names after {prefix!r}; none of {wanted} is there")


def _numbered(state: Mapping[str, Tensor], pattern: str) -> list[str]:
    """The names of experts 0, 1, ... as far as they go."""
    if "{}" not in pattern:
        return []
    names = []
    while pattern.format(len(names)) in state:
        names.append(pattern.format(len(names)))
    return names
