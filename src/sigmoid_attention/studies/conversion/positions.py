"""Measures the loss of a converted model by position, also beyond its training length.

Shapes: S sequences of N tokens.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigmoid_attention.lab.store import SETTING
from sigmoid_attention.training.data.corpus import load_corpus
from sigmoid_attention.training.files import read_json, reading
from sigmoid_attention.training.terminal import in_sentences

BANDS = (0, 256, 1024, 2048, 4096)
# A text counts as lost if its loss exceeds the parent's by this number of nats per token.
LOST = 0.5


def losses(run: Path, sequences: int) -> tuple[Tensor, Tensor]:
    """The losses of the parent and of its conversion on the same held-out texts, each (S, N - 1).

    Raises:
        ValueError: the folder has no finished conversion, or the text is too short.
    """
    # Imported here, so that --help works without transformers.
    from transformers import AutoModelForCausalLM

    from sigmoid_attention.integrations.transformers import register
    from sigmoid_attention.studies.conversion.parents import load_parent
    from sigmoid_attention.studies.conversion.run import MODEL
    from sigmoid_attention.studies.conversion.text import TokenSequences

    if not (run / MODEL).is_dir():
        raise ValueError(f"run: there is no converted model in {run}")
    setting = read_json(run / SETTING)
    with reading(run / SETTING):
        model, data = setting["model"], setting["data"]
    parent, corpus = load_parent(model), load_corpus(data)
    texts = TokenSequences(parent, corpus, seq_len=BANDS[-1], batch_size=1, seed=0)
    batches = texts.heldout_batches(sequences)
    register()
    converted = AutoModelForCausalLM.from_pretrained(
        run / MODEL, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return _losses(parent.model, batches), _losses(converted, batches)


@torch.no_grad()
def _losses(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    rows = []
    for batch in batches:
        logits_NV = model(**batch, use_cache=False).logits[0, :-1].float()
        rows.append(F.cross_entropy(logits_NV, batch["input_ids"][0, 1:], reduction="none"))
    return torch.stack(rows)


def table(parent_SN: Tensor, converted_SN: Tensor) -> str:
    """A Markdown table of mean losses by position, and of the number of lost texts."""
    bands = [slice(first, end) for first, end in pairwise(BANDS)]
    count = len(parent_SN)
    lost = [
        sum((converted_SN[:, band].mean(1) > parent_SN[:, band].mean(1) + LOST).tolist())
        for band in bands
    ]
    rows = {
        "parent": [f"{parent_SN[:, band].mean():.3f}" for band in bands],
        "converted": [f"{converted_SN[:, band].mean():.3f}" for band in bands],
        "median over texts": [f"{converted_SN[:, band].mean(1).median():.3f}" for band in bands],
        f"texts that are lost by {LOST}": [f"{each} of {count}" for each in lost],
    }
    head = [f"{band.start} to {band.stop - 1}" for band in bands]
    lines = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m sigmoid_attention.studies.conversion.positions RUN`, of a causal model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `sigmoid-attention convert`")
    parser.add_argument("--sequences", type=int, default=8, help="held-out texts")
    options = parser.parse_args(arguments)
    print(table(*losses(options.run, options.sequences)))


if __name__ == "__main__":
    sys.exit(in_sentences(main))
