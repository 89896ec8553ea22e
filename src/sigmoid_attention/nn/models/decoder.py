"""A decoder language model built from the layers, with sigmoid or softmax attention.

Shape letters: B batch, N tokens, C model dim, V vocabulary.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigmoid_attention.attention import arguments, torch_state
from sigmoid_attention.attention.torch_function import leaf_in_fx
from sigmoid_attention.nn.attention import Attention
from sigmoid_attention.nn.block import Block
from sigmoid_attention.nn.cache import KVCache, Unchanged
from sigmoid_attention.nn.feed_forward import FEED_FORWARDS
from sigmoid_attention.nn.models.config import ModelConfig
from sigmoid_attention.nn.norm import RMSNorm
from sigmoid_attention.nn.position import (
    CAPE,
    ALiBi,
    AttentionPosition,
    EmbeddingPosition,
    LearnedPosition,
    RoPE,
    RoPEWithALiBi,
    SinCos,
    token_positions,
)
from sigmoid_attention.nn.router import record_routing
from sigmoid_attention.nn.sizes import positive_whole

IGNORED_TARGET = -100


def _embedding_position(config: ModelConfig) -> EmbeddingPosition:
    match config.position:
        case "sincos":
            return SinCos(config.dim)
        case "cape":
            return CAPE(config.dim)
        case "learned":
            return LearnedPosition(config.dim, config.max_seq_len)
        case _:
            return EmbeddingPosition()


def _attention_position(config: ModelConfig) -> AttentionPosition:
    match config.position:
        case "rope":
            return RoPE(config.rope_base)
        case "alibi":
            return ALiBi()
        case "rope+alibi":
            return RoPEWithALiBi(config.rope_base)
        case _:
            return AttentionPosition()


def _feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    if config.moe is not None and layer >= config.moe.dense_layers:
        return config.moe.build(config.dim, kind=config.feed_forward)
    return FEED_FORWARDS[config.feed_forward](config.dim, config.hidden_dim)


def _block(config: ModelConfig, layer: int) -> Block:
    # The softmax twin of a configuration keeps these options, which mean nothing to it.
    sigmoid_options = {
        "centred_keys": config.centred_keys,
        "state_bias": config.state_bias,
        "mass_exponent": config.mass_exponent,
    }
    attention = Attention(
        config.dim,
        config.num_heads,
        max_seq_len=config.max_seq_len,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        activation=config.activation,
        bias=config.bias_policy(),
        position=_attention_position(config),
        qk_norm=config.qk_norm,
        window_size=(-1, -1) if config.window_size is None else (config.window_size - 1, 0),
        reach=config.reach,
        softcap=config.softcap,
        dropout_p=config.dropout_p,
        gate=config.gate,
        # The first layer has the values that the others are mixed with.
        value_residual=config.value_residual and layer > 0,
        norm_eps=config.norm_eps,
        **(sigmoid_options if config.activation == "sigmoid" else {}),
    )
    return Block(
        attention,
        _feed_forward(config, layer),
        norm_placement=config.norm_placement,
        layer_scale=config.layer_scale,
        dropout_p=config.dropout_p,
        norm_eps=config.norm_eps,
    )


class TiedEmbedding(nn.Embedding):
    """Rows of the table for integers (...), or logits (..., V) for states (..., C) of any length.

    One module computes both, since offloading, sharding and hooks act on the calls of a module.

    Example:
        >>> table = TiedEmbedding(7, 4)
        >>> table(torch.tensor([1, 2])).shape, table(torch.randn(2, 4)).shape
        (torch.Size([2, 4]), torch.Size([2, 7]))
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_floating_point():
            return F.linear(input, self.weight)
        return super().forward(input)


def _check_targets(tokens: Tensor, targets: Tensor, vocab_size: int) -> None:
    arguments.dense("tokens", tokens)
    arguments.dense("targets", targets)
    if targets.dtype not in (torch.int32, torch.int64) or targets.shape != tokens.shape:
        raise ValueError(
            f"targets must be integers of the tokens' shape {tuple(tokens.shape)}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}"
        )
    if targets.device != tokens.device:
        raise ValueError(
            f"targets must be on the tokens' device, got {targets.device} and {tokens.device}"
        )
    # Before the model runs, since a router counts its calls. On a GPU the check would wait.
    if not (targets.is_cpu and type(targets) is Tensor and torch_state.has_values(targets)):
        return
    if torch_state.in_functorch():
        return
    scored = targets[targets != IGNORED_TARGET]
    low, high = (int(edge) for edge in scored.aminmax()) if scored.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"targets must lie in 0 to {vocab_size - 1}, or be {IGNORED_TARGET} to be left out, "
            f"got {low} to {high}"
        )


class DecoderLM(nn.Module):
    """Embedding, position, blocks, a last RMSNorm and the vocabulary; every layer is causal.

    The names of submodules are stable: ``embedding``, ``position``, ``blocks.{i}.attention``,
    ``blocks.{i}.feed_forward``, ``norm`` and ``head``, or a `TiedEmbedding` in place of a head.

    Initialisation follows Ramapuram et al. 2024 (section 6.2): linear weights are normal with
    variance 1 / fan_in, the embedding with variance 1 / dim, gains are one. Embedded tokens are
    multiplied by dim^1/2 (Vaswani et al. 2017, section 3.4), so that a token enters the residual
    stream as large as the output of a branch. Without that factor a token is a small part of the
    stream after one layer, and the model learns no recall, with either attention (docs/log.md).

    The last norm gives a state of length dim^1/2, so tied logits have unit variance. The state of
    a token still contains its embedding, which raises the logit of that token: the first loss is
    about log V + 1/2 under hybrid norm, a little more under pre norm. With LayerScale or post norm
    the stream is at first mostly the embedding; there the gain of the last norm starts at
    dim^-1/2, and the first loss is about log V.

    Example:
        >>> from sigmoid_attention.nn import PRESETS
        >>> model = DecoderLM(PRESETS["tiny"])
        >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
        torch.Size([2, 5, 257])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        embedding = TiedEmbedding if config.tie_embeddings else nn.Embedding
        self.embedding = embedding(config.vocab_size, config.dim)
        self.position = _embedding_position(config)
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.config.dim**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        mostly_embedding = (
            self.config.layer_scale is not None or self.config.norm_placement == "post"
        )
        if self.config.tie_embeddings and mostly_embedding:
            nn.init.constant_(self.norm.weight, self.config.dim**-0.5)

    def hidden(
        self,
        tokens: Tensor,
        *,
        cache: list[KVCache] | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """The normalised state of every token, (B, N, dim); arguments and errors as `forward`."""
        arguments.dense("tokens", tokens)
        if tokens.dim() != 2 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"tokens must be integers of shape (batch, tokens), "
                f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        if cache is not None:
            self._check_caches(cache)
        batch, new = tokens.shape
        start = 0 if cache is None else cache[0].length
        longest = self.position.max_length
        if longest is not None and start + new > longest:
            raise ValueError(
                f"tokens: the learned position table ends at {longest} tokens, got {start + new}"
            )
        positions_BN = token_positions(batch, new, start, attn_mask, tokens.device)
        try:
            embedded_BNC = self.embedding(tokens)
        except IndexError as error:
            # Raised on a CPU only, where reading the tokens costs little.
            low, high = (int(edge) for edge in tokens.aminmax())
            raise ValueError(
                f"tokens must lie in 0 to {self.config.vocab_size - 1}, got {low} to {high}"
            ) from error
        x_BNC = self.position(embedded_BNC, positions_BN) * self.config.dim**0.5
        residual: dict[str, Any] = {"return_value": True} if self.config.value_residual else {}
        with Unchanged(*cache or ()):
            for i, block in enumerate(self.blocks):
                layer_cache = None if cache is None else cache[i]
                x_BNC = block(x_BNC, cache=layer_cache, attn_mask=attn_mask, **residual)
                if "return_value" in residual:
                    x_BNC, first_value = x_BNC
                    residual = {"first_value": first_value}
        return self.norm(x_BNC)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of normalised states (..., dim)."""
        head = self.embedding if self.config.tie_embeddings else self.head
        return head(hidden)

    @leaf_in_fx
    def forward(
        self,
        tokens: Tensor,
        *,
        cache: list[KVCache] | None = None,
        attn_mask: Tensor | None = None,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Logits (B, N, V) of tokens (B, N), which follow those in ``cache``.

        ``attn_mask`` is (B, cached + N), boolean, True for a real token; the real tokens of
        a row stand side by side. ``logits_to_keep`` is the number of last tokens whose logits
        are returned, None for all. Raises ``ValueError`` for other shapes or dtypes, a full cache,
        and more tokens than a learned position table holds.
        """
        if logits_to_keep is not None:
            positive_whole("logits_to_keep", logits_to_keep)
        hidden = self.hidden(tokens, cache=cache, attn_mask=attn_mask)
        return self.logits(hidden if logits_to_keep is None else hidden[:, -logits_to_keep:])

    def _check_caches(self, cache: list[KVCache]) -> None:
        layers = len(self.blocks)
        if not isinstance(cache, list | tuple):
            raise TypeError(f"cache must be a list of {layers}, got {arguments.shown(cache)}")
        if len(cache) != layers:
            raise ValueError(f"cache must hold {layers} layers, got {len(cache)}")
        for layer in cache:
            if not isinstance(layer, KVCache):
                raise TypeError(
                    f"cache must hold a KVCache for each layer, got {arguments.shown(layer)}"
                )
        if len(lengths := {layer.length for layer in cache}) > 1:
            raise ValueError(
                f"cache must hold as many tokens in each layer, got {sorted(lengths)} tokens"
            )

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats of targets (B, N), those equal to -100 left out.

        In training mode the balance losses that ``config.moe`` weighs are added. Raises
        ``ValueError`` for targets of another shape or dtype, and, on a CPU, outside the vocabulary.
        """
        _check_targets(tokens, targets, self.config.vocab_size)
        with record_routing(self) as routings:
            logits_BNV = self(tokens)
        loss = F.cross_entropy(
            logits_BNV.flatten(0, 1).float(), targets.flatten().long(), ignore_index=IGNORED_TARGET
        )
        if self.config.moe is None or not self.training:
            return loss
        return loss + self.config.moe.penalty(routings).to(loss.device)

    def new_cache(
        self, batch: int, length: int, *, dtype: torch.dtype | None = None
    ) -> list[KVCache]:
        """Empty caches for ``length`` tokens, one per layer, in ``dtype`` or that of the keys."""
        return [
            cast(Block, block).attention.new_cache(batch, length, dtype=dtype)
            for block in self.blocks
        ]
