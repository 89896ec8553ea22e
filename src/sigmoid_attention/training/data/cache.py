"""The folder in which downloads are kept between runs."""

import os
from pathlib import Path

from sigmoid_attention.extras import lab_imports

with lab_imports("sigmoid_attention.training"):
    import platformdirs


def cache_dir() -> Path:
    """The user's cache folder for this library, or what `SIGMOID_ATTENTION_CACHE` names.

    Example:
        >>> isinstance(cache_dir(), Path)
        True
    """
    named = os.environ.get("SIGMOID_ATTENTION_CACHE")
    return Path(named) if named else Path(platformdirs.user_cache_dir("sigmoid-attention"))
