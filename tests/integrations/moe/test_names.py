"""Weight renaming: round trips of every layout, one checked by hand, and errors."""

import pytest
import torch

from sigmoid_attention.integrations.moe import LAYOUTS, from_layout, to_layout
from sigmoid_attention.nn import MoEConfig

FULL = MoEConfig(3, 5, top_k=2, shared_experts=2, balance_rate=1e-3)
BARE = MoEConfig(3, 5, top_k=2)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@each_layout
@pytest.mark.parametrize("config", [FULL, BARE], ids=["shared and bias", "bare"])
@pytest.mark.parametrize("prefix", ["", "model.layers.7.mlp."], ids=["alone", "prefix"])
@pytest.mark.parametrize("explicit", [True, False], ids=["named", "found"])
def test_a_state_dict_survives_both_conversions(layout, config, prefix, explicit):
    state = config.build(dim=4).state_dict()
    theirs = to_layout(state, layout, prefix=prefix)
    assert all(name.startswith(prefix) for name in theirs)
    other = {"model.norm.weight": torch.ones(4)} if prefix else {}
    back = from_layout(theirs | other, layout if explicit else None, prefix=prefix)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_torchtitans_names_by_hand():
    layer = FULL.build(dim=4)
    theirs = to_layout(layer.state_dict(), "torchtitan")
    assert torch.equal(theirs["experts.w1"], layer.experts.gate_up[:, :5])
    assert torch.equal(theirs["experts.w3"], layer.experts.gate_up[:, 5:])
    assert torch.equal(theirs["experts.w2"], layer.experts.down)
    assert torch.equal(theirs["shared_experts.w1.weight"], layer.shared.gate.weight)
    assert torch.equal(theirs["shared_experts.w3.weight"], layer.shared.up.weight)
    assert torch.equal(theirs["shared_experts.w2.weight"], layer.shared.down.weight)
    assert torch.equal(theirs["router.gate.weight"], layer.router.weight)
    assert torch.equal(theirs["expert_bias"], layer.router.correction_bias)


def test_a_checkpoints_experts_stand_alone():
    layer = FULL.build(dim=4)
    theirs = to_layout(layer.state_dict(), "deepseek_checkpoint")
    assert torch.equal(theirs["experts.2.gate_proj.weight"], layer.experts.gate_up[2, :5])
    assert torch.equal(theirs["experts.1.up_proj.weight"], layer.experts.gate_up[1, 5:])
    assert torch.equal(theirs["experts.0.down_proj.weight"], layer.experts.down[0])


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(affinity="fully_quadratic"), "'torchtitan' has no name for router.quadratic"),
        (dict(intercept=True), "'torchtitan' has no name for router.intercept"),
    ],
    ids=str,
)
def test_parameters_without_a_counterpart_are_refused(change, sentence):
    layer = MoEConfig(3, 5, top_k=2, **change).build(dim=4)
    with pytest.raises(ValueError, match=sentence):
        to_layout(layer.state_dict(), "torchtitan")


@each_layout
def test_gelu_experts_are_refused(layout):
    with pytest.raises(ValueError, match=r"has no name for experts\.up"):
        to_layout(BARE.build(dim=4, kind="gelu").state_dict(), layout)


def test_unknown_missing_and_surplus_names_are_named():
    theirs = to_layout(BARE.build(dim=4).state_dict(), "deepseek")
    with pytest.raises(ValueError, match=r"layout must be one of deepseek, .*, got 'megatron'"):
        to_layout(theirs, "megatron")
    with pytest.raises(ValueError, match=r"layout must be one of deepseek, .*, got 'megatron'"):
        from_layout(theirs, "megatron")
    with pytest.raises(ValueError, match=r"layout 'deepseek' has no gate\.bias"):
        from_layout(theirs | {"gate.bias": torch.zeros(3)})
    del theirs["experts.gate_up_proj"]
    with pytest.raises(ValueError, match=r"experts\.gate_up_proj is missing, which layout 'deeps"):
        from_layout(theirs)
    with pytest.raises(ValueError, match=r"no layout fits the names after 'layers\.2\.'"):
        from_layout(theirs, prefix="layers.2.")


def test_a_missing_expert_in_the_middle_is_named():
    theirs = to_layout(BARE.build(dim=4).state_dict(), "deepseek_checkpoint")
    del theirs["experts.1.up_proj.weight"]
    with pytest.raises(ValueError, match=r"has no experts\.2\.up_proj\.weight"):
        from_layout(theirs)
