"""Convert mixture-of-experts layers from and to DeepSeek-V3, torchtitan and transformers.

`to_layout` and `from_layout` rename the entries of a state dict. Functions for modules of
transformers are in `sigmoid_attention.integrations.moe.transformers`.
"""

from sigmoid_attention.integrations.moe.names import LAYOUTS, from_layout, to_layout

__all__ = ["LAYOUTS", "from_layout", "to_layout"]
