"""Packed sequences do not see each other, in continuous batching and with given ends."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from sigmoid_attention import NegLogLength
from sigmoid_attention.integrations.transformers import PerHead, sigmoid_attention_forward
from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES

PROMPTS = [[5, 9, 11, 7, 3, 8, 20, 31], [13, 4, 6], [7] * 5]
NEW = 5


CONVERSIONS = {
    "number": {"bias": NegLogLength(8)},
    "per-head": {"bias": PerHead(NegLogLength(8))},
    "linear": {"bias": PerHead(NegLogLength(8), linear=True)},
    "centred": {"bias": PerHead(NegLogLength(8)), "centred_keys": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("bias", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_continuous_batching_writes_what_each_request_gets_alone(name, bias):
    """Mistral's window is shorter than the longest request, and no block holds a whole one."""
    model = checks.converted(ARCHITECTURES[name], **bias)
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
    batching = ContinuousBatchingConfig(num_blocks=16, block_size=4, max_batch_tokens=16)
    actual = model.generate_batch(
        inputs=PROMPTS,
        generation_config=settings,
        continuous_batching_config=batching,
        progress_bar=False,
    )
    assert model.config._attn_implementation == "sigmoid"
    written = {tuple(out.prompt_ids): out.generated_tokens for out in actual.values()}
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(NEW):
                following = model(input_ids=tokens, use_cache=False).logits[:, -1].argmax(-1)
                tokens = torch.cat([tokens, following[None]], dim=1)
        assert written[tuple(prompt)] == tokens[0, len(prompt) :].tolist()


def packed(positions: bool):
    """Three sequences in one row, as `DataCollatorWithFlattening` lays them out."""
    tokens = torch.tensor([[x for prompt in PROMPTS for x in prompt]])
    ends = torch.tensor([0, 8, 11, 16], dtype=torch.int32)
    batch = {"input_ids": tokens, "use_cache": False}
    for side in "qk":
        batch |= {f"cu_seq_lens_{side}": ends, f"max_length_{side}": 8}
    if positions:
        batch["position_ids"] = torch.cat([torch.arange(len(prompt)) for prompt in PROMPTS])[None]
    return batch


@pytest.mark.parametrize("bias", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_a_packed_batch_trains_as_its_sequences_alone(name, bias):
    """With the numbers of positions transformers makes a mask as well, without only ends are told;
    rotations do not notice the difference."""
    model = checks.converted(ARCHITECTURES[name], **bias)
    alone = torch.cat([model(input_ids=torch.tensor([prompt])).logits for prompt in PROMPTS], dim=1)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(4))
    parameters = list(model.parameters())
    expected = torch.autograd.grad((alone * weights).sum(), parameters)
    for positions in (True, False):
        result = model(**packed(positions)).logits
        torch.testing.assert_close(result, alone, **checks.TOLERANCE)
        actual = torch.autograd.grad((result * weights).sum(), parameters)
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("bias", ["linear", "centred"])
@pytest.mark.parametrize("name", ["BERT", "ModernBERT"])
def test_packed_sequences_of_an_encoder(name, bias):
    """ModernBERT's window is open to both sides."""
    model = checks.converted(ARCHITECTURES[name], **CONVERSIONS[bias])
    parts = [model(input_ids=torch.tensor([prompt])).last_hidden_state for prompt in PROMPTS]
    batch = packed(positions=True)
    del batch["use_cache"]
    actual = model(**batch).last_hidden_state
    torch.testing.assert_close(actual, torch.cat(parts, dim=1), **checks.TOLERANCE)


def test_ends_without_the_longest_sequence_are_enough():
    model = checks.converted(ARCHITECTURES["Llama"])
    batch = packed(positions=True)
    whole = model(**batch).logits
    lean = {name: value for name, value in batch.items() if "max_length" not in name}
    del lean["position_ids"]
    torch.testing.assert_close(model(**lean).logits, whole, **checks.TOLERANCE)


def test_a_mask_and_ends_both_count():
    """A mask of one causal row does not open what the ends keep apart."""
    model = checks.converted(ARCHITECTURES["Llama"])
    batch = packed(positions=False)
    expected = model(**batch).logits
    causal = torch.ones(1, 1, 16, 16, dtype=torch.bool).tril()
    for mask in (causal, torch.zeros(1, 1, 16, 16).masked_fill(~causal, -torch.inf)):
        actual = model(**batch, attention_mask=mask).logits
        torch.testing.assert_close(actual, expected, **checks.TOLERANCE)


def test_a_mask_of_keys_alone_and_ends_both_count():
    query, key, value = torch.randn(3, 1, 2, 5, 6).unbind(0)
    seen = torch.tensor([True, True, True, False, True])
    actual, _ = sigmoid_attention_forward(
        Attention(), query, key, value, seen[None, None, None], cu_seq_lens_q=ENDS,
        cu_seq_lens_k=ENDS,
    )  # fmt: skip
    row = torch.tensor([0, 0, 1, 1, 1])
    mask = ((row[:, None] == row) & seen)[None, None]
    expected, _ = sigmoid_attention_forward(Attention(), query, key, value, mask)
    torch.testing.assert_close(actual, expected)


class Attention(torch.nn.Module):
    sigmoid_bias, is_causal, layer_idx = -2.0, True, 0


ENDS = torch.tensor([0, 2, 5])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cu_seq_lens_q": ENDS}, "^cu_seq_lens_k: is NoneType"),
        ({"cu_seq_lens_q": ENDS, "cu_seq_lens_k": {"full": ENDS}}, "^cu_seq_lens_k: is dict"),
        ({"cu_seq_lens_q": ENDS[None], "cu_seq_lens_k": ENDS}, r"^cu_seq_lens_q: is .* \(1, 3\)"),
        (
            {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS, "max_length_k": {"full": 3}},
            "^max_length_k: is a dict",
        ),
        ({"read_index": [ENDS], "write_index": [ENDS]}, "^read_index: comes without cu_seq_lens_q"),
        (
            {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS, "block_table": ENDS},
            "^block_table: Attention of transformers .* does not know",
        ),
        ({"cache": object()}, "^cache: is object, not a PagedAttentionCache"),
        (
            {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS, "output_attentions": True},
            "^output_attentions: packed sequences",
        ),
        ({"paged_keys": ENDS}, "^paged_keys: Attention of transformers"),
        ({"indices": ENDS}, "^indices: Attention of transformers"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_an_unknown_packing_is_refused(arguments, complaint):
    query, key, value = torch.randn(3, 1, 2, 5, 6).unbind(0)
    with pytest.raises(ValueError, match=complaint):
        sigmoid_attention_forward(Attention(), query, key, value, None, **arguments)


def test_a_batch_of_several_rows_is_not_packed():
    query, key, value = torch.randn(3, 2, 2, 5, 6).unbind(0)
    ends = {"cu_seq_lens_q": ENDS, "cu_seq_lens_k": ENDS}
    with pytest.raises(ValueError, match=r"^cu_seq_lens_q: comes with a batch of 2 rows"):
        sigmoid_attention_forward(Attention(), query, key, value, None, **ends)


def test_an_argument_that_says_nothing_is_passed_over():
    query, key, value = torch.randn(3, 1, 2, 5, 6).unbind(0)
    plain, _ = sigmoid_attention_forward(Attention(), query, key, value, None)
    silent = {"indices": None, "of_the_future": False, "position_ids": torch.arange(5)[None]}
    actual, _ = sigmoid_attention_forward(Attention(), query, key, value, None, **silent)
    assert torch.equal(actual, plain)
