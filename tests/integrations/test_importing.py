"""The messages for packages that fail to import: install, change the version, or run doctor."""

import importlib
import sys

import pytest
import timm  # noqa: F401, what is taken away below was there

from sigmoid_attention.integrations.importing import remedy

OURS = ("sigmoid_attention.integrations.timm", "sigmoid_attention.integrations.timm_layers")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["timm"], r"needs timm 1\.0\.23 or newer .*: pip install '\.\[timm\]' in a clone"),
        ([], r"timm \d\S* lacks what it uses: .*timm\.layers\.attention"),
    ],
    ids=["package", "module"],
)
def test_what_is_missing_is_named(missing, message, monkeypatch):
    for name in (*missing, "timm.layers.attention"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=message):
        importlib.import_module(OURS[0])


def test_a_package_that_does_not_import_gets_advice_to_run_doctor():
    """As transformers says it where torchvision does not load: the cause is below its own error."""
    error = ModuleNotFoundError("Could not import module 'PreTrainedModel'")
    error.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    message = remedy("timm", "1.0.23 or newer", error)
    assert "does not import here: operator torchvision::nms does not exist" in message
    assert message.endswith("`sigmoid-attention doctor` gives the remedy")
