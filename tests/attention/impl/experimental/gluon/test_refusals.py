"""Errors of the Hopper kernels name the unsupported argument; `auto` then takes another kernel."""

import pytest
import torch

from sigmoid_attention import sigmoid_attention
from sigmoid_attention.attention.impl.experimental.gluon.call import fetchable


def inputs(dim: int = 64, dtype: torch.dtype = torch.bfloat16, keys: int = 8):
    return [torch.randn(1, 2, length, dim, dtype=dtype) for length in (8, keys, keys)]


REFUSED = {
    "query: the Hopper kernels have no torch.float32": (inputs(dtype=torch.float32), {}),
    "query: the Hopper kernels take head dims": (inputs(dim=96), {}),
    "attn_mask:": (inputs(), {"attn_mask": torch.ones(8, 8, dtype=torch.bool), "bias": -1.0}),
    "softcap:": (inputs(), {"softcap": 30.0}),
    "bias: the Hopper kernels take one for each head": (inputs(), {"bias": torch.zeros(8, 1)}),
    "query: the Hopper kernels need something": (inputs(keys=0), {"bias": -1.0}),
    "query: is on cpu": (inputs(), {"bias": torch.zeros(2, 1, 1)}),
}


@pytest.mark.parametrize("sentence", REFUSED, ids=lambda each: each.replace(" ", "-"))
def test_an_unsupported_option_is_named_and_auto_takes_another_implementation(sentence):
    tensors, options = REFUSED[sentence]
    with pytest.raises(NotImplementedError, match=sentence):
        sigmoid_attention(*tensors, **options, impl="gluon")
    assert sigmoid_attention(*tensors, **options).shape == tensors[0].shape


def test_only_what_the_copy_engine_cannot_read_is_copied():
    heads_last = torch.randn(2, 5, 3, 64, dtype=torch.bfloat16).transpose(1, 2)
    assert fetchable(heads_last) is heads_last
    assert fetchable(heads_last[:1, :1]).data_ptr() == heads_last.data_ptr()
    for odd in (
        torch.randn(2, 3, 5, 65, dtype=torch.bfloat16)[..., :64],
        torch.randn(2, 3, 5, 72, dtype=torch.bfloat16)[..., 1:65],
        torch.randn(2, 3, 64, 8, dtype=torch.bfloat16).mT,
        torch.randn(2, 1, 5, 64, dtype=torch.bfloat16).expand(2, 3, 5, 64),
    ):
        actual = fetchable(odd)
        assert actual.is_contiguous() and torch.equal(actual, odd)
