"""The attention matrix of a layer, for those who look at it: no operator ever forms it.

Shapes: B sequences, N tokens, H query heads, G key heads.
"""

import torch
from torch import Tensor

from sigmoid_attention.attention import sigmoid_attention
from sigmoid_attention.nn import Attention, softmax_attention
from sigmoid_attention.nn.position import token_positions


@torch.no_grad()
def attention_weights(layer: Attention, x: Tensor) -> Tensor:
    """The weights (B, H, N, N) that `layer` gives to x (B, N, dim), before dropout.

    Attention is linear in its values, so with the identity in their place the output is the matrix
    itself: position, norms, bias and mask are the operator's own, for either activation.

    Example:
        >>> layer = Attention(8, heads=2, max_seq_len=4, activation="softmax")
        >>> attention_weights(layer, torch.randn(1, 4, 8)).sum(-1).allclose(torch.ones(1, 2, 4))
        True
    """
    batch, tokens, _ = x.shape
    query = layer.query(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    key = layer.key(x).unflatten(-1, (layer.kv_heads, -1)).transpose(1, 2)
    positions_BN = token_positions(batch, tokens, 0, None, x.device)
    query, key = layer.qk_norm(query, key)
    query, key = layer.position.rotate(query, key, positions_BN)
    identity = torch.eye(tokens, dtype=query.dtype, device=x.device)
    settings = {
        "value": identity.expand(batch, layer.kv_heads, tokens, tokens),
        "is_causal": layer.causal,
        "window_size": layer.window_size,
        "alibi_slopes": layer.position.slopes(layer.heads, x.device),
        "softcap": layer.softcap,
        "enable_gqa": layer.heads != layer.kv_heads,
    }
    if layer.activation == "softmax":
        weights_BHNN = softmax_attention(query, key, **settings)
    else:
        weights_BHNN = sigmoid_attention(query, key, bias=layer.bias, impl="reference", **settings)
    assert isinstance(weights_BHNN, Tensor), "a pair comes back only where return_aux asks for it"
    return weights_BHNN
