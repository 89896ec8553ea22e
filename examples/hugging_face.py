"""Convert a Hugging Face model to sigmoid attention, generate, save and reload it.

The model is tiny and random, so that the script needs no download. With `from_pretrained` in the
place of `LlamaForCausalLM(config)` the steps are the same, but a trained softmax model has to be
trained further: see `sigmoid-attention convert` and docs/conversion.md.
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead, convert, register

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
model = LlamaForCausalLM(config)

# A bias per head, which trains, started at -log(512): 512 is the training length in tokens.
convert(model, bias=PerHead(NegLogLength(512)), qk_norm="rms", norm="hybrid")
print(model.config._attn_implementation, model.model.layers[0].self_attn.sigmoid_bias.shape)

prompt = torch.tensor([[1, 5, 7, 9]])
options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
print(model.generate(prompt, **options)[0].tolist())

register()  # from now on `from_pretrained` restores converted checkpoints
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
assert torch.equal(reloaded.generate(prompt, **options), model.generate(prompt, **options))
