"""`convert` of a config runs its model without allocating memory, even if it reads values."""

import pytest
import torch
import transformers as tf

from sigmoid_attention.integrations.transformers import PerHead, attention_modules, convert
from tests.support.transformers.architectures import ARCHITECTURES

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 37,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DECODER = {"is_decoder": True, "add_cross_attention": True}
BART = {
    "vocab_size": 61, "d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "pad_token_id": 0,
    "encoder_attention_heads": 4, "decoder_attention_heads": 3, "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
}  # fmt: skip
WHISPER = BART | {
    "decoder_attention_heads": 4, "num_mel_bins": 8, "max_source_positions": 13,
    "max_target_positions": 37, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 3,
    "image_size": 15, "patch_size": 5,
}  # fmt: skip

# A grouped product of meta tensors takes bf16 alone, and no number of tokens can be looked up.
MIXTURES = {
    "Mixtral": (tf.MixtralConfig, SIZES | GROUPED | {"num_local_experts": 3}),
    "Qwen2-MoE": (tf.Qwen2MoeConfig, SIZES | GROUPED | EXPERTS),
    "Qwen3-MoE": (tf.Qwen3MoeConfig, SIZES | GROUPED | EXPERTS | {"head_dim": 6}),
    "OLMoE": (tf.OlmoeConfig, SIZES | GROUPED | {"num_experts": 3, "num_experts_per_tok": 2}),
    "DeepSeek-V3": (lambda **_: ARCHITECTURES["DeepSeek-V3"].build().config, {}),
    "PhiMoE": (tf.PhimoeConfig, SIZES | GROUPED | {"num_local_experts": 3}),
    "Switch": (
        tf.SwitchTransformersConfig,
        {"vocab_size": 61, "d_model": 24, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 4,
         "num_experts": 3, "expert_capacity": 4, "decoder_start_token_id": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "sizes"), MIXTURES.values(), ids=MIXTURES)
def test_a_mixture_of_experts(kind, sizes):
    config = convert(kind(**sizes), bias=PerHead(-3.0))
    model = tf.AutoModel.from_config(config).eval()
    assert all(module.sigmoid_bias.shape == (4,) for module in attention_modules(model).values())
    tokens = torch.arange(5)[None]
    more = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
    assert model(input_ids=tokens, **more).last_hidden_state.isfinite().all()


def test_a_mixture_that_was_made_without_memory():
    with torch.device("meta"):
        model = tf.MixtralModel(tf.MixtralConfig(**MIXTURES["Mixtral"][1]))
    convert(model, bias=PerHead(-3.0))
    assert {module.sigmoid_bias.device.type for module in attention_modules(model).values()} == {
        "meta"
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_gives_what_its_model_gives(name):
    architecture = ARCHITECTURES[name]
    config = convert(architecture.build().config, bias=PerHead(-3.0))
    model = convert(architecture.build(), bias=PerHead(-3.0))
    built = type(model)(config)
    assert set(built.state_dict()) == set(model.state_dict())
    assert len(attention_modules(built)) == architecture.modules


def bert(kind):
    return lambda: kind(kind.config_class(**SIZES, **DECODER))


def text_and_text():
    parts = tf.BertConfig(**SIZES), tf.BertConfig(**SIZES)
    return tf.EncoderDecoderModel(tf.EncoderDecoderConfig.from_encoder_decoder_configs(*parts))


def image_and_text():
    gpt2 = tf.GPT2Config(
        vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=37, add_cross_attention=True
    )
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        tf.ViTConfig(**VISION), gpt2
    )
    return tf.VisionEncoderDecoderModel(config)


DECODERS = {
    "BERT": (bert(tf.BertLMHeadModel), 4),
    "RoBERTa": (bert(tf.RobertaForCausalLM), 4),
    "Electra": (bert(tf.ElectraForCausalLM), 4),
    "BART-decoder": (lambda: tf.BartForCausalLM(tf.BartConfig(**BART)), 4),
    "Whisper-decoder": (lambda: tf.WhisperForCausalLM(tf.WhisperConfig(**WHISPER)), 4),
    "BERT-and-BERT": (text_and_text, 6),
    "ViT-and-GPT-2": (image_and_text, 5),
    "BERT-without": (lambda: tf.BertLMHeadModel(tf.BertConfig(**SIZES, is_decoder=True)), 2),
}


@pytest.mark.parametrize(("build", "modules"), DECODERS.values(), ids=DECODERS)
def test_a_decoder_gets_something_to_attend_to(build, modules, tmp_path):
    model = convert(build().eval(), bias=-3.0)
    assert len(attention_modules(model)) == modules
    model.save_pretrained(tmp_path)
    assert len(attention_modules(type(model).from_pretrained(tmp_path))) == modules
    config = convert(build().config, bias=-3.0)
    assert len(attention_modules(type(model)(config))) == modules
