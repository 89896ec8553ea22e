"""Replace the attention layers of a torch model by sigmoid attention, in place."""

import copy
from collections.abc import Callable

from torch import nn

from sigmoid_attention.attention import BiasPolicy, Implementation
from sigmoid_attention.nn.multihead import SigmoidBias, SigmoidMultiheadAttention


def replace_multihead_attention(
    model: nn.Module,
    sigmoid_bias: SigmoidBias | Callable[[str], SigmoidBias] | None = None,
    *,
    impl: Implementation = "auto",
) -> nn.Module:
    """Turn every ``nn.MultiheadAttention`` of a model into a `SigmoidMultiheadAttention`, in place.

    Parameters, hooks and modes do not change, and an optimizer keeps its parameters.
    Weights that were trained with a softmax need further training.

    Args:
        model: for instance an ``nn.Transformer`` or one of its parts.
        sigmoid_bias: required. As for `SigmoidMultiheadAttention`; or a function from the name of
            a module, like "decoder.layers.0.multihead_attn", to its bias: self-attention and
            cross-attention may see different numbers of keys. Each module gets its own copy of a
            `Learned` or a `LearnedCentring`.

    Returns:
        The model.

    Raises:
        TypeError: the bias has a wrong type. Nothing is changed then, nor for a ValueError.
        ValueError: the model has no such module, or one of a derived class, whose ``forward`` may
            differ; or the bias or ``impl`` does not fit.

    Example:
        >>> from sigmoid_attention import NegLogLength
        >>> layer = nn.TransformerEncoderLayer(32, 4, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, num_layers=2)
        >>> type(replace_multihead_attention(model, NegLogLength(64)).layers[1].self_attn).__name__
        'SigmoidMultiheadAttention'
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        and not isinstance(module, SigmoidMultiheadAttention)
    }
    if not modules:
        raise ValueError(f"model: {type(model).__name__} has no nn.MultiheadAttention to replace")
    for name, module in modules.items():
        if type(module) is not nn.MultiheadAttention:
            raise ValueError(
                f"model: {name} is a {type(module).__name__}, whose forward pass may differ; "
                f"only nn.MultiheadAttention itself is replaced"
            )
    if sigmoid_bias is None:
        raise ValueError(
            "sigmoid_bias must be given, since torch's layers do not store the number of keys in "
            "training, e.g. sigmoid_bias=NegLogLength(1024)"
        )
    biases = {
        name: _module_bias(sigmoid_bias, name, module, impl) for name, module in modules.items()
    }
    for name, module in modules.items():
        module.__class__ = SigmoidMultiheadAttention
        assert isinstance(module, SigmoidMultiheadAttention)
        module.weigh_by_sigmoid(biases[name], impl)
    return model


def _module_bias(
    sigmoid_bias: SigmoidBias | Callable[[str], SigmoidBias],
    name: str,
    module: nn.MultiheadAttention,
    impl: Implementation,
) -> SigmoidBias:
    # A bias that is a module is callable too.
    if not isinstance(sigmoid_bias, BiasPolicy) and callable(sigmoid_bias):
        sigmoid_bias = sigmoid_bias(name)
    SigmoidMultiheadAttention.check_settings(module, sigmoid_bias, impl)
    if isinstance(sigmoid_bias, nn.Module):
        return copy.deepcopy(sigmoid_bias).to(module.out_proj.weight.device)
    return sigmoid_bias
