"""Register the operator, its mask function and the patches with transformers."""

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from sigmoid_attention.integrations.transformers import paged, patches, probe
from sigmoid_attention.integrations.transformers.config_entry import NAME, PROBE
from sigmoid_attention.integrations.transformers.forward import sigmoid_attention_forward


def register() -> None:
    """Register ``attn_implementation="sigmoid"`` with transformers; further calls do nothing.

    Beside the operator goes its mask function: without one transformers drops padding and windows
    of a custom attention silently. From then on a checkpoint that `convert` wrote is restored by
    ``from_pretrained``, and a config that carries its key refuses any other implementation.

    Example:
        >>> from transformers import AttentionInterface
        >>> register()
        >>> "sigmoid" in AttentionInterface()
        True
    """
    for name, attend in ((NAME, sigmoid_attention_forward), (PROBE, probe.probe)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, sdpa_mask)
    patches.install()
    paged.install()
