"""Mixture-of-experts layers under the names of DeepSeek-V3, torchtitan and transformers.

`to_layout` and `from_layout` rename what a checkpoint holds; what works on modules of transformers
is in `sigmoid_attention.integrations.moe.transformers`.
"""

from sigmoid_attention.integrations.moe.names import LAYOUTS, from_layout, to_layout

__all__ = ["LAYOUTS", "from_layout", "to_layout"]
