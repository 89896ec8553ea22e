"""The needle test: retrieval of one fact from a long text, which the loss does not measure.

Shapes: N tokens.
"""

import torch
from torch import Tensor

from sigmoid_attention.studies.conversion.parents import Parent
from sigmoid_attention.training.seeds import step_generator

NEEDLE = " The secret number of the {place} is {number}."
QUESTION = " The secret number of the {place} is"
PLACES = ("harbour", "library", "orchard", "cathedral", "bakery", "lighthouse", "stable", "mill")


def haystacks(
    parent: Parent, heldout: Tensor, length: int, count: int, source: str = "the text"
) -> list[tuple[Tensor, Tensor]]:
    """`count` texts of `length` tokens with a hidden number each, at evenly spaced depths.

    Each is a pair: the input ids (1, N), which end with the question and the answer without its
    last token; and the answer's ids.

    Raises:
        ValueError: the held-out text of `source` is shorter than `length`, or `length` is too
            short for the needle and its question.
    """
    made = []
    for index in range(count):
        generator = step_generator(length, index, heldout=True)
        place = PLACES[index % len(PLACES)]
        number = int(torch.randint(10_000, 100_000, (), generator=generator))
        needle = _ids(parent, NEEDLE.format(place=place, number=number))
        question = _ids(parent, QUESTION.format(place=place))
        answer = _ids(parent, f"{QUESTION.format(place=place)} {number}")[len(question) :]
        hay_length = length - len(needle) - len(question) - len(answer) + 1
        if hay_length < 0:
            raise ValueError(f"needles must be at least {length - hay_length} tokens, got {length}")
        if len(heldout) <= hay_length:
            raise ValueError(
                f"data: {source} is too short: {len(heldout)} tokens held out, and a needle "
                f"is sought among {length}"
            )
        start = int(torch.randint(len(heldout) - hay_length, (), generator=generator))
        hay = heldout[start : start + hay_length].long()
        depth = round(hay_length * (index + 0.5) / count)
        parts = hay[:depth], needle, hay[depth:], question, answer[:-1]
        made.append((torch.cat(parts)[None], answer))
    return made


@torch.no_grad()
def needle_scores(
    model: torch.nn.Module, texts: list[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """The share of answers that greedy decoding gives completely, and the mean loss per token."""
    hits, losses = 0, 0.0
    for ids_1N, answer in texts:
        device = next(model.parameters()).device
        out = model(ids_1N.to(device), use_cache=False, logits_to_keep=len(answer))
        logits_NV = out.logits[0, -len(answer) :].float().cpu()
        hits += bool((logits_NV.argmax(-1) == answer).all())
        losses += float(torch.nn.functional.cross_entropy(logits_NV, answer))
    return hits / len(texts), losses / len(texts)


def _ids(parent: Parent, text: str) -> Tensor:
    return torch.tensor(parent.tokenizer(text, add_special_tokens=False)["input_ids"])
