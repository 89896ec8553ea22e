"""A fake GPU for tests of dispatch: fake tensors on a device with invented properties."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sigmoid_attention.attention.impl.triton import configs


@contextmanager
def fake_gpu(major: int, minor: int) -> Iterator[None]:
    """Within it tensors on "cuda" are fake, and torch reports an NVIDIA GPU of this capability."""
    pytest.importorskip("triton")
    properties = SimpleNamespace(
        name="an NVIDIA GPU",
        major=major,
        minor=minor,
        shared_memory_per_block_optin=227 * 1024,
        multi_processor_count=132,
    )
    with (
        FakeTensorMode(),
        mock.patch.object(torch.cuda, "get_device_properties", lambda *_: properties),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(configs, "_gpu", configs._gpu.__wrapped__),
    ):
        yield
