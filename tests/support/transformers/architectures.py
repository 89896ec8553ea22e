"""Tiny random models of transformers, and a batch for each, with odd sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf
from torch import Tensor
from transformers import PreTrainedModel

TOKENS, BATCH, VOCABULARY = 11, 2, 61

_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 37,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 6}
_IMAGE = {
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 15,
    "patch_size": 5,
}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MARKED = {**_SPECIAL, "cls_token_id": 1, "sep_token_id": 2}
_BART_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
}


@dataclass(frozen=True)
class Architecture:
    """How a tiny model is made, what it reads, and how many attention modules it has."""

    model: Callable[[], PreTrainedModel]
    reads: str
    modules: int
    qk_norm: bool = True
    # Whether padding to the left can be left out of the numbering of its tokens.
    pads_left: bool = True

    @property
    def decodes(self) -> bool:
        return self.reads in ("tokens, causal", "tokens to tokens", "sound to tokens")

    @property
    def pads(self) -> bool:
        return self.reads.startswith("tokens") or self.reads == "sound"

    def build(self, seed: int = 0) -> PreTrainedModel:
        """The model in evaluation mode, with weights large enough that attention matters."""
        torch.manual_seed(seed)
        model = self.model().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.25)
        return model

    def batch(self, seed: int = 1) -> dict[str, Tensor]:
        """Inputs without padding."""
        random = torch.Generator().manual_seed(seed)

        def tokens(count: int) -> Tensor:
            return torch.randint(3, VOCABULARY, (BATCH, count), generator=random)

        def floats(*shape: int) -> Tensor:
            return torch.randn(BATCH, *shape, generator=random)

        pixels = {"pixel_values": floats(3, 15, 15)}
        return {
            "tokens": lambda: {"input_ids": tokens(TOKENS)},
            "tokens, causal": lambda: {"input_ids": tokens(TOKENS)},
            "pixels": lambda: pixels,
            "tokens and pixels": lambda: {"input_ids": tokens(TOKENS), **pixels},
            "tokens to tokens": lambda: {
                "input_ids": tokens(TOKENS),
                "decoder_input_ids": tokens(7),
            },
            "sound to tokens": lambda: {
                "input_features": floats(8, 26),
                "decoder_input_ids": tokens(7),
            },
            "sound": lambda: {"input_values": floats(230)},
        }[self.reads]()


def _llama() -> PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, **_GROUPED))


def _qwen3() -> PreTrainedModel:
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**_TEXT, **_GROUPED))


def _mistral() -> PreTrainedModel:
    return tf.MistralForCausalLM(tf.MistralConfig(**_TEXT, **_GROUPED, sliding_window=5))


def _gemma2() -> PreTrainedModel:
    config = tf.Gemma2Config(
        **_TEXT, **_GROUPED, sliding_window=5, attn_logit_softcapping=2.0, query_pre_attn_scalar=6
    )
    return tf.Gemma2ForCausalLM(config)


def _gpt2() -> PreTrainedModel:
    config = tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=2, n_head=4, n_positions=37, n_inner=20
    )
    return tf.GPT2LMHeadModel(config)


def _bert() -> PreTrainedModel:
    return tf.BertModel(tf.BertConfig(**_TEXT))


def _modernbert() -> PreTrainedModel:
    config = tf.ModernBertConfig(**_TEXT | {"num_hidden_layers": 3}, **_MARKED, local_attention=6)
    return tf.ModernBertModel(config)


def _vit() -> PreTrainedModel:
    return tf.ViTModel(tf.ViTConfig(**_IMAGE))


def _dinov2() -> PreTrainedModel:
    return tf.Dinov2Model(tf.Dinov2Config(**_IMAGE))


def _clip() -> PreTrainedModel:
    config = tf.CLIPConfig(text_config=_TEXT, vision_config=_IMAGE, projection_dim=14)
    return tf.CLIPModel(config)


def _t5() -> PreTrainedModel:
    config = tf.T5Config(
        vocab_size=VOCABULARY,
        d_model=24,
        d_kv=6,
        d_ff=20,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        decoder_start_token_id=0,
    )
    return tf.T5ForConditionalGeneration(config)


def _bart() -> PreTrainedModel:
    config = tf.BartConfig(**_BART_SIZES, **_SPECIAL, max_position_embeddings=37)
    return tf.BartForConditionalGeneration(config)


def _whisper() -> PreTrainedModel:
    config = tf.WhisperConfig(
        **_BART_SIZES | {"decoder_attention_heads": 4},
        **_SPECIAL,
        decoder_start_token_id=3,
        max_source_positions=13,
        max_target_positions=37,
        num_mel_bins=8,
    )
    return tf.WhisperForConditionalGeneration(config)


def _wav2vec2() -> PreTrainedModel:
    config = tf.Wav2Vec2Config(
        **{name: size for name, size in _TEXT.items() if name != "max_position_embeddings"},
        # The other norm is one over time, to which silence behind a sound makes a difference.
        feat_extract_norm="layer",
        conv_dim=[16, 16],
        conv_stride=[5, 4],
        conv_kernel=[10, 4],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return tf.Wav2Vec2Model(config)


def _deepseek_v3() -> PreTrainedModel:
    config = tf.DeepseekV3Config(
        **_TEXT,
        num_key_value_heads=4,
        moe_intermediate_size=12,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=12,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
    )
    return tf.DeepseekV3ForCausalLM(config)


def _swin() -> PreTrainedModel:
    config = tf.SwinConfig(
        image_size=15, patch_size=5, embed_dim=12, depths=[1, 1], num_heads=[2, 3], window_size=2
    )
    return tf.SwinModel(config)


ARCHITECTURES = {
    "Llama": Architecture(_llama, "tokens, causal", 2),
    "Qwen3": Architecture(_qwen3, "tokens, causal", 2, qk_norm=False),
    "Mistral": Architecture(_mistral, "tokens, causal", 2),
    "Gemma-2": Architecture(_gemma2, "tokens, causal", 2),
    "GPT-2": Architecture(_gpt2, "tokens, causal", 2),
    "BERT": Architecture(_bert, "tokens", 2),
    "ModernBERT": Architecture(_modernbert, "tokens", 3),
    "ViT": Architecture(_vit, "pixels", 2),
    "DINOv2": Architecture(_dinov2, "pixels", 2),
    "CLIP": Architecture(_clip, "tokens and pixels", 4),
    "T5": Architecture(_t5, "tokens to tokens", 6),
    "BART": Architecture(_bart, "tokens to tokens", 6, pads_left=False),
    "Whisper": Architecture(_whisper, "sound to tokens", 6),
    "Wav2Vec2": Architecture(_wav2vec2, "sound", 2),
    "DeepSeek-V3": Architecture(_deepseek_v3, "tokens, causal", 2, qk_norm=False),
    "Swin": Architecture(_swin, "pixels", 2),
}
