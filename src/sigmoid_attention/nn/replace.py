"""Sigmoid attention in a model of torch's own layers, in place."""

import copy
from collections.abc import Callable

from torch import nn

from sigmoid_attention.attention import BiasPolicy, Implementation, Learned
from sigmoid_attention.nn.multihead import SigmoidBias, SigmoidMultiheadAttention


def replace_multihead_attention(
    model: nn.Module,
    sigmoid_bias: SigmoidBias | Callable[[str], SigmoidBias] | None = None,
    *,
    impl: Implementation = "auto",
) -> nn.Module:
    """Turn every ``nn.MultiheadAttention`` in a model into a sigmoid one, in place.

    Parameters, hooks and modes stay what they are, and an optimizer keeps its parameters.
    Weights that were trained with a softmax have to be trained further.

    Args:
        model: for instance an ``nn.Transformer`` or one of its parts.
        sigmoid_bias: required. As for `SigmoidMultiheadAttention`; or a function from the name of
            a module, like "decoder.layers.0.multihead_attn", to that: a decoder sees keys of two
            kinds. A `Learned` is copied for each module.

    Returns:
        The model.

    Raises:
        ValueError: there is no such module, or one of a class derived from it, which may have a
            softmax of its own, or the bias or ``impl`` does not fit; nothing is changed then.

    Example:
        >>> from sigmoid_attention import NegLogLength
        >>> layer = nn.TransformerEncoderLayer(32, 4, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, num_layers=2)
        >>> type(replace_multihead_attention(model, NegLogLength(64)).layers[1].self_attn).__name__
        'SigmoidMultiheadAttention'
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        and not isinstance(module, SigmoidMultiheadAttention)
    }
    if not found:
        raise ValueError(f"model: {type(model).__name__} has no nn.MultiheadAttention to replace")
    for name, module in found.items():
        if type(module) is not nn.MultiheadAttention:
            raise ValueError(
                f"model: {name} is a {type(module).__name__}, whose forward pass may be its own; "
                f"only nn.MultiheadAttention itself is replaced"
            )
    if sigmoid_bias is None:
        raise ValueError(
            "sigmoid_bias: torch's layers do not say with how many keys they are trained; give "
            "that number, e.g. sigmoid_bias=NegLogLength(1024)"
        )
    biases = {name: _own_bias(sigmoid_bias, name, found[name], impl) for name in found}
    for name, module in found.items():
        module.__class__ = SigmoidMultiheadAttention
        assert isinstance(module, SigmoidMultiheadAttention)
        module.weigh_by_sigmoid(biases[name], impl)
    return model


def _own_bias(
    sigmoid_bias: SigmoidBias | Callable[[str], SigmoidBias],
    name: str,
    module: nn.MultiheadAttention,
    impl: Implementation,
) -> SigmoidBias:
    # A Learned bias is a module and so can be called, but not with a name.
    if not isinstance(sigmoid_bias, BiasPolicy) and callable(sigmoid_bias):
        sigmoid_bias = sigmoid_bias(name)
    SigmoidMultiheadAttention.check_settings(module, sigmoid_bias, impl)
    if isinstance(sigmoid_bias, Learned):
        return copy.deepcopy(sigmoid_bias).to(module.out_proj.weight.device)
    return sigmoid_bias
