"""How other objects than tensors take a call of the operator over, as they do with torch's own.

torch.fx traces with proxies, and users write tensor subclasses with a ``__torch_function__``. Such
an object gets the call of a public function as a whole: in a torch.fx graph it is one node.
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
    """A function whose tensors may take its call over by ``__torch_function__``.

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
    """A layer's forward that stays one node in a graph of torch.fx, as torch's own layers do.

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

    A node is a part of a module, so that a trace of the layer alone raises torch.fx's `TraceError`.
    """

    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # To a root torch.fx hands one proxy for all of ``args``.
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
    # The compiler counts the graphs of a function by its code: all layers would share one limit.
    leaf.__code__ = leaf.__code__.replace(co_name=forward.__qualname__)
    # By ``__wrapped__`` torch.fx would count the arguments of ``forward``, and then call this.
    leaf.__signature__ = inspect.signature(forward)
    del leaf.__wrapped__
    return leaf
