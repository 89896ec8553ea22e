"""A folder with a tiny checkpoint, a tokenizer of words, and a text of such words."""

import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.conversion.models import KINDS, VOCABULARY

WORDS = [f"w{number}" for number in range(VOCABULARY - 4)]
SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]


def checkpoint(folder: Path, kind: str) -> Path:
    """A model of `kind` as transformers saves it; an encoder's texts stand in [CLS] and [SEP]."""
    KINDS[kind]().save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({w: n for n, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    if kind == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    else:
        special["eos_token"] = "[SEP]"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def text(path: Path, words: int = 3000, names: tuple[str, ...] = ("text.txt",)) -> Path:
    """Words of which each depends on the one before, in one file or several."""
    draw = random.Random(0)
    for name in names:
        last, pieces = 0, []
        for _ in range(words):
            last = (3 * last + draw.choice((1, 2, 5))) % len(WORDS)
            pieces.append(WORDS[last])
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(" ".join(pieces))
    return path / names[0] if len(names) == 1 else path
