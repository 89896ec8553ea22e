"""Undo a change to a model if it fails midway."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_or_nothing(objects: Iterable[Any]) -> Iterator[None]:
    """Restore the class and the attributes of modules and configs after an error.

    Dicts and sets among the attributes, such as a module's parameters and hooks, get their content
    back and stay the same objects, because the handle of a hook refers to its dict. Values of
    tensors are not restored.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> try:
        ...     with all_or_nothing(layer.modules()):
        ...         layer.extra, layer.bias = nn.ReLU(), None
        ...         raise ValueError
        ... except ValueError:
        ...     print(len(list(layer.children())), layer.bias is None)
        0 False
    """
    held = [(each, type(each), dict(vars(each))) for each in objects]
    contents = [
        (value, copy.copy(value))
        for _, _, own in held
        for value in own.values()
        if isinstance(value, dict | set)
    ]
    try:
        yield
    except BaseException:
        for each, kind, own in held:
            if type(each) is not kind:
                each.__class__ = kind
            vars(each).clear()
            vars(each).update(own)
        for value, content in contents:
            value.clear()
            value.update(content)
        raise
