"""Spearman correlations between a model's similarities of texts and human ratings.

Two collections that gensim's wheel carries among its test data:

- Lee: 50 news documents of 51 to 126 words, with human similarity ratings of the 1225 pairs
  (Lee, Pincombe & Welsh 2005, "An empirical evaluation of models of text document similarity");
- WordSim-353: 353 pairs of words with mean human scores (Finkelstein et al. 2002).

gensim's licence is LGPL-2.1; neither collection states its own licence there. The collections are
not shipped with this library, and not used for training.

Shape letters: B texts, N tokens, C channels.
"""

import zipfile
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sigmoid_attention.training.data.downloads import downloaded

REQUIREMENT = "gensim==4.4.0"
WHEEL = "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"
SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
# The wheel of one fixed platform, because it is only read, not installed.
OPTIONS = [
    "--only-binary",
    ":all:",
    "--platform",
    "manylinux_2_28_x86_64",
    "--python-version",
    "3.11",
]
FOLDER = "gensim/test/test_data/"
LONGEST = 256
BATCH = 25


@dataclass(frozen=True)
class Pairs:
    """Texts, pairs of their indices, and the human similarity rating of each pair."""

    name: str
    texts: list[str]
    pairs: list[tuple[int, int]]
    scores: list[float]


@cache
def human_pairs() -> tuple[Pairs, ...]:
    """Both collections, downloaded once.

    Raises:
        OSError: pip could not download them.
    """
    wheel = downloaded(
        REQUIREMENT,
        WHEEL,
        SHA256,
        options=OPTIONS,
        without_it="a causal model needs no pairs of texts",
    )
    with zipfile.ZipFile(wheel) as archive:
        documents, similarities, words = (
            archive.read(FOLDER + name).decode("utf-8", "replace")
            for name in ("lee.cor", "similarities0-1.txt", "wordsim353.tsv")
        )
    return lee(documents, similarities), wordsim(words)


def lee(documents: str, similarities: str) -> Pairs:
    """Parse one document per line, and the upper triangle of their similarities.

    Example:
        >>> lee("a\\nb\\nc", "1 .5 .2\\n0 1 .4\\n0 0 1").scores
        [0.5, 0.2, 0.4]
    """
    texts = documents.strip().splitlines()
    rows = [[float(cell) for cell in row.split()] for row in similarities.strip().splitlines()]
    pairs = [(i, j) for i in range(len(texts)) for j in range(i + 1, len(texts))]
    return Pairs("Lee", texts, pairs, [rows[i][j] for i, j in pairs])


def wordsim(table: str) -> Pairs:
    """Parse two words and a score per line, after lines that begin with #.

    Example:
        >>> wordsim("# Word 1\\nlove\\tsex\\t6.77\\nlove\\tcat\\t1.0").pairs
        [(0, 1), (0, 2)]
    """
    lines = [line.split("\t") for line in table.splitlines() if line and line[0] != "#"]
    texts = list(dict.fromkeys(word for first, second, _ in lines for word in (first, second)))
    place = {word: index for index, word in enumerate(texts)}
    pairs = [(place[first], place[second]) for first, second, _ in lines]
    return Pairs("WordSim-353", texts, pairs, [float(score) for _, _, score in lines])


def correlation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs) -> float:
    """Spearman's correlation of human scores with cosines of mean-pooled hidden states."""
    unit_BC = F.normalize(_embedded(model, tokenizer, pairs.texts), dim=-1)
    cosines = [float(unit_BC[i] @ unit_BC[j]) for i, j in pairs.pairs]
    return float(spearmanr(cosines, pairs.scores)[0])  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def _embedded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> Tensor:
    pooled = []
    for first in range(0, len(texts), BATCH):
        batch = tokenizer(
            texts[first : first + BATCH],
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        ).to(model.device)
        hidden_BNC = model(**batch).last_hidden_state.float()
        mask_BN1 = batch["attention_mask"][..., None]
        pooled.append((hidden_BNC * mask_BN1).sum(1) / mask_BN1.sum(1))
    return torch.cat(pooled).cpu()
