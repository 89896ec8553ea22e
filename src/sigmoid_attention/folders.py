"""The folders of this library on a user's machine."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for this library; `SIGMOID_ATTENTION_CACHE` overrides it.

    Raises:
        RuntimeError: the user has no home directory.

    Example:
        >>> isinstance(cache_folder(), Path)
        True
    """
    if named := os.environ.get("SIGMOID_ATTENTION_CACHE"):
        return Path(named)
    name = "sigmoid-attention"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        return Path(local, name, name, "Cache").expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches", name).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", name).expanduser()
