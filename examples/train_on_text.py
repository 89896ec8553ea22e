"""Train a small language model with sigmoid attention on your own text, and sample from it.

    python examples/train_on_text.py [FILE OR FOLDER]

The command line does the same, with checkpoints: `sigmoid-attention train --data FOLDER --out OUT`.
"""

import sys

import torch

from sigmoid_attention.nn import DecoderLM, ModelConfig, generate
from sigmoid_attention.training.data.batches import TextBatches, token_stream
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.data.tokenizer import ByteTokenizer
from sigmoid_attention.training.trainer import TrainConfig, train

corpus = load_corpus(sys.argv[1] if len(sys.argv) > 1 else __file__)
tokenizer = ByteTokenizer()
config = ModelConfig.recipe(
    "recommended", vocab_size=tokenizer.vocab_size, dim=64, layers=2, num_heads=4, max_seq_len=64
)

torch.manual_seed(0)
model = DecoderLM(config)
batches = TextBatches(
    token_stream(tokenizer, corpus.train), seq_len=config.max_seq_len, batch_size=8, seed=0
)
result = train(model, batches, TrainConfig(steps=60, lr=1e-2), progress=False)
print(f"loss {result.losses[0]:.2f} -> {result.losses[-1]:.2f} nats a token")

prompt = torch.tensor([tokenizer.encode(b"import ")])
sample = generate(model, prompt, max_new_tokens=60, temperature=0.0)
print(repr(tokenizer.decode(sample[0].tolist())))
