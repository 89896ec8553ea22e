"""A decoder under `fully_shard` trains and generates as the unsharded one."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sigmoid_attention.nn import DecoderLM, ModelConfig, MoEConfig, generate

SIZES = dict(vocab_size=11, dim=8, layers=2, num_heads=2, max_seq_len=32, ffn_dim=12)
MIXTURE = MoEConfig(experts=4, hidden=6, top_k=2, normalize=True, switch_loss=0.1)
MODELS = {
    "tied": dict(),
    "head-learned-bias": dict(tie_embeddings=False, learn_bias=True),
    "options": dict(
        centred_keys=True,
        state_bias=True,
        gate="head",
        value_residual=True,
        mass_exponent="learned",
    ),
    "experts": dict(moe=MIXTURE, layer_scale=0.1),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    here = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{here}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def by_block(model):
    return [*model.blocks, model]


def by_weight(model):
    # Parts of a part come first, as `fully_shard` requires.
    holders = [part for part in model.modules() if part._parameters]
    return [*reversed(holders), model]


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
@pytest.mark.parametrize("parts", [by_block, by_weight], ids=["blocks", "weights"])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_sharded_as_whole(changes, parts, mesh):
    model = DecoderLM(ModelConfig.recipe("recommended", **SIZES, **changes))
    sharded = copy.deepcopy(model)
    for part in parts(sharded):
        fully_shard(part, mesh=mesh)
    tokens = torch.randint(11, (2, 7))
    expected = generate(model, tokens, max_new_tokens=4)
    assert torch.equal(generate(sharded, tokens, max_new_tokens=4), expected)
    losses = [each.loss(tokens[:, :-1], tokens[:, 1:]) for each in (model, sharded)]
    assert losses[0] == losses[1]
    for loss in losses:
        loss.backward()
    for whole, part in zip(model.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(part.grad.full_tensor(), whole.grad)
