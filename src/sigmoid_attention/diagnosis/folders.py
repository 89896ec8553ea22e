"""Opens a folder for the diagnosis: a model of `train` or `compare`, or one of transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sigmoid_attention.training.data.corpus import Corpus
from sigmoid_attention.training.files import Damaged, read_json
from sigmoid_attention.training.model_folder import CONFIG, load_trained

# Attention weights of a longer text take much memory: 512 tokens are 1 MB a head and sequence.
MOST_TOKENS = 512
RECORDS = "records"


@dataclass(frozen=True)
class Opened:
    """A model, its tokenizer as a function, its trained length, and the records of its training.

    The trained length is None where the folder does not tell it. ``extends`` says whether the
    model can read longer texts.
    """

    model: nn.Module
    encode: Callable[[bytes], Sequence[int]]
    trained_length: int | None
    extends: bool
    records: Path | None

    def tokens(self, corpus: Corpus, sequences: int, length: int) -> Tensor:
        """Held-out text as (sequences, length) token ids.

        Raises ``ValueError`` if there is too little of it.
        """
        wanted, ids = sequences * length, []
        for document in corpus.heldout:
            ids += self.encode(document.text[: 8 * wanted])
            if len(ids) >= wanted:
                return torch.tensor(ids[:wanted]).view(sequences, length)
        raise ValueError(
            f"data: {sequences} sequences of {length} tokens are needed, and the held-out text "
            f"has {len(ids)} tokens; name a longer text, or fewer --sequences"
        )


def open_folder(folder: Path) -> Opened:
    """Open a folder. Raises ``ValueError`` if it holds no model with sigmoid attention."""
    if _is_of_transformers(folder):
        return _transformers(folder)
    model, tokenizer = load_trained(folder)
    config = model.config
    records = folder / RECORDS if (folder / RECORDS).is_dir() else None
    extends = config.position != "learned"
    return Opened(model, tokenizer.encode, config.max_seq_len, extends, records)


def _is_of_transformers(folder: Path) -> bool:
    try:
        return "model_type" in read_json(folder / CONFIG)
    except (OSError, Damaged):
        return False  # `load_trained` says what is wrong


def _transformers(folder: Path) -> Opened:
    import sigmoid_attention.integrations.transformers  # noqa: F401, I001
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    config = read_json(folder / CONFIG)
    if "sigmoid_attention" not in config:
        raise ValueError(
            f"{folder} holds a model of transformers with softmax attention; "
            f"`sigmoid-attention convert` makes one with sigmoid attention"
        )
    causal = any("CausalLM" in name or "LMHead" in name for name in config["architectures"])
    kind = AutoModelForCausalLM if causal else AutoModel
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        # In the dtype of the files: a bias in bf16 is a fault.
        model = kind.from_pretrained(folder, use_safetensors=True, dtype="auto", **local)
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    # For a damaged folder transformers may raise any exception.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"transformers cannot load {folder}: {reason}") from error

    def encode(text: bytes) -> list[int]:
        return tokenizer.encode(text.decode(errors="replace"), verbose=False)

    return Opened(model.eval(), encode, None, False, None)
