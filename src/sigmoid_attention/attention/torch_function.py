"""Support of ``__torch_function__`` in the public functions and layers, as in torch's own.

torch.fx traces with proxies, and users write tensor subclasses with a ``__torch_function__``. Such
an argument receives the call of a public function as a whole: it is one node of a torch.fx graph.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import handle_torch_function, has_torch_function

Function = TypeVar("Function", bound=Callable[..., Any])


def overridable(function: Function) -> Function:
    """Decorator: an argument with ``__torch_function__`` may override the function.

    Example:
        >>> import torch
        >>> from sigmoid_attention import sigmoid_attention
        >>> class Block(torch.nn.Module):
        ...     def forward(self, x):
        ...         return sigmoid_attention(x, x, x, bias=-2.0)
        >>> [node.op for node in torch.fx.symbolic_trace(Block()).graph.nodes]
        ['placeholder', 'call_function', 'output']
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            return handle_torch_function(call, given, *args, **kwargs)
        return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


def leaf_in_fx(forward: Function) -> Function:
    """Decorator of a layer's forward: the layer is one node in a torch.fx graph, like torch's own.

    Example:
        >>> import torch
        >>> from sigmoid_attention.nn import SigmoidMultiheadAttention
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.mha = SigmoidMultiheadAttention(8, 2, sigmoid_bias=-2.0)
        ...     def forward(self, x):
        ...         return self.mha(x, x, x)[0]
        >>> [node.op for node in torch.fx.symbolic_trace(Block()).graph.nodes]
        ['placeholder', 'call_module', 'call_function', 'output']

    Such a node needs a parent module, so a trace of the layer alone raises torch.fx's `TraceError`.
    """

    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # For the root module of a trace, torch.fx passes one proxy for all of ``args``.
        for given in (args,) if isinstance(args, fx.Proxy) else (*args, *kwargs.values()):
            if isinstance(given, fx.Proxy):
                tracer: Any = given.tracer
                if tracer.root is self:
                    raise TraceError(
                        f"{type(self).__name__}: torch.fx traces it as a part of a module, where "
                        f"it is one node; trace a module that holds it, such as nn.Sequential"
                    )
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return forward(self, *args, **kwargs)

    leaf: Any = call
    # torch.compile limits the graphs per code object: all layers would share one limit.
    leaf.__code__ = leaf.__code__.replace(co_name=forward.__qualname__)
    # With ``__wrapped__`` torch.fx would use the signature of ``forward``, but call this wrapper.
    leaf.__signature__ = inspect.signature(forward)
    del leaf.__wrapped__
    return leaf
