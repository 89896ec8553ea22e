"""Decode with a paged cache: two sequences of different lengths share one pool of pages.

The cache holds 8 pages of 16 tokens. A block table says which page holds which part of a sequence.
"""

import torch

from sigmoid_attention import NegLogLength, sigmoid_attention, sigmoid_decode

PAGES, PAGE_SIZE, HEADS, KEY_HEADS, HEAD_DIM = 8, 16, 4, 2, 32
BIAS = NegLogLength(1024)  # the training length, not the length of the cache

torch.manual_seed(0)
key_pages, value_pages = torch.zeros(2, PAGES, PAGE_SIZE, KEY_HEADS, HEAD_DIM).unbind(0)
block_table = torch.tensor([[5, 0, 2], [7, 3, 1]], dtype=torch.int32)
lengths = torch.tensor([40, 20], dtype=torch.int32)

# Fill the pages with keys and values of the tokens so far.
prompts = [torch.randn(2, int(length), KEY_HEADS, HEAD_DIM) for length in lengths]
for sequence, (keys, values) in enumerate(prompts):
    for token in range(len(keys)):
        page, row = block_table[sequence, token // PAGE_SIZE], token % PAGE_SIZE
        key_pages[page, row], value_pages[page, row] = keys[token], values[token]

# One decoding step: one query for each sequence.
query = torch.randn(2, HEADS, 1, HEAD_DIM)
out = sigmoid_decode(
    query,
    key_pages,
    value_pages,
    seqused_k=lengths,
    block_table=block_table,
    bias=BIAS,
    is_causal=True,
    enable_gqa=True,
)

# The same without a cache.
for sequence, (keys, values) in enumerate(prompts):
    plain = sigmoid_attention(
        query[sequence : sequence + 1],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        bias=BIAS,
        enable_gqa=True,
    )
    torch.testing.assert_close(out[sequence : sequence + 1], plain)
print("paged and plain attention agree:", tuple(out.shape))
