"""Options of the commands that make or use one model, as dataclasses that tyro reads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sigmoid_attention.lab.option_types import Device, Flag, Int, Json, Str
from sigmoid_attention.studies.conversion.setting import ConversionSetting


@dataclass(frozen=True)
class TrainOptions:
    """Train one small language model; OUT then holds all that `generate` needs.

    OUT/loss.csv has the losses of every step, in bits a byte, and OUT/loss.svg their curve.
    """

    out: Path
    """Folder for checkpoint, tokenizer and configuration; empty or new unless --resume."""
    data: str = "stdlib"
    """"stdlib", "shakespeare", or the path of a file or folder."""
    binaries: Flag = False
    """Also read binary files. By default those in a folder are skipped, and a single one is
    refused."""
    preset: str = "small"
    """Size of the model: tiny, small, medium (needs a GPU), gala-85m, gala-1b, gala-7b (need
    large ones)."""
    recipe: Str = None
    """Position, norms and bias: recommended or paper; the preset's own if not given."""
    activation: str = "sigmoid"
    """sigmoid or softmax."""
    vocab_size: Int = None
    """257 reads bytes; more trains byte pairs on the text. The preset's own if not given."""
    dim: Int = None
    """Channels, in place of the preset's; feed-forward layers are then 8/3 as wide."""
    layers: Int = None
    """Layers, in place of the preset's."""
    num_heads: Int = None
    """Heads of a layer, in place of the preset's."""
    max_seq_len: Annotated[Int, tyro.conf.arg(aliases=("--seq-len",))] = None
    """Tokens of a sequence, in place of the preset's."""
    steps: int = 1000
    """Training steps; with --resume there may be more than OUT was begun with."""
    batch_size: int = 16
    """Sequences a step."""
    lr: float = 3e-3
    """Peak learning rate, reached after the warm-up; a cosine then takes it to a tenth."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    bf16: Flag = False
    """Compute the forward pass in bfloat16; parameters stay in float32."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    device: Device = "auto"
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    eval_every: int = 200
    """Steps between tests on held-out text, which OUT/loss.csv keeps; 0 tests at the end only."""
    record: int = 0
    """Steps between records of the norms and extremes inside the network, as Parquet under
    OUT/records; 0 keeps none."""
    resume: Flag = False
    """Continue from the checkpoint in OUT; only --steps may change."""
    json: Json = False


@dataclass(frozen=True)
class GenerateOptions:
    """Generate text with a trained model."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained model: the --out of `train`, or one of runs/ in that of `compare`."""
    prompt: str = ""
    """Beginning of the text."""
    max_new_tokens: int = 200
    """Stop after this many tokens, or where the model ends the document."""
    temperature: float = 0.8
    """0 takes the most likely token; 1 samples from the model's distribution."""
    top_p: float = 0.95
    """Sample from the most likely tokens that together reach this probability."""
    seed: int = 0
    """Seed of the sampling."""
    device: Device = "auto"


@dataclass(frozen=True)
class ConvertOptions:
    """Convert a pretrained softmax model to sigmoid attention, by distillation from itself.

    Starts from sigmoids that reproduce the softmax, fits the bias of every head, and trains layer
    by layer, then all layers, towards the parent's hidden states and predictions. OUT/model is then
    a checkpoint of transformers, and OUT/curve.json has the measurements.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A folder with a checkpoint of transformers, a .gguf file, or smollm2-135m or
    all-minilm-l6-v2 (one download of 93 and 84 MB)."""
    out: Path
    """Folder for model, checkpoints and measurements; empty or new unless --resume."""
    setting: tyro.conf.OmitArgPrefixes[ConversionSetting] = field(default_factory=ConversionSetting)
    """The training in two stages."""
    data: str = "shakespeare"
    """Text to train on: "shakespeare", "stdlib", or the path of a file or folder."""
    heldout_sequences: int = 16
    """Sequences of held-out text for each evaluation."""
    needles: tuple[int, ...] = (256, 1024, 2048)
    """Tokens of the texts in which a language model looks for a number, before and after."""
    evaluate_every: int = 50
    """Steps of the second stage between evaluations."""
    device: Device = "auto"
    resume: Flag = False
    """Continue the conversion in OUT."""
    json: Json = False


@dataclass(frozen=True)
class RegularityOptions:
    """Bound and measure how much every layer's output changes with its input.
    Prints a line for each residual branch: a certificate for all inputs in a ball, a tighter one
    at a text, and the norm of the Jacobian there, measured. Writes OUT/certificate.json and .svg.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained model: the --out of `train`, or one of runs/ in that of `compare`."""
    radius: float
    """The largest norm of an embedded token that the certificate is for."""
    lower: float = 0.0
    """The smallest such norm. Norm layers are steep near zero, so a larger value gives tighter
    bounds."""
    text: str = "def first(items):\n    return items[0]\n"
    """Input at which the network is measured; repeated if it is too short."""
    tokens: int = 64
    """Length of the input."""
    seconds: float = 60.0
    """Time limit for measuring the whole network; single layers have none."""
    out: Path = Path("runs/regularity")
    """Folder for the certificate and its figure."""
    json: Json = False


@dataclass(frozen=True)
class DiagnoseOptions:
    """Find faults of the sigmoid attention in a trained model, and the change that mends each.
    Runs a few batches of text, and reads the records of the training if there are any: too large a
    mass, saturated or dead heads, heads that do the same, keys that every query weighs, a mass that
    drifts beyond the trained length, a bias in a narrow dtype, spikes.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained model: the --out of `train`, one of runs/ in that of `compare`, or model/
    in that of `convert`, and any other checkpoint of transformers with sigmoid attention."""
    data: str = "stdlib"
    """Text to read: "stdlib", "shakespeare", or the path of a file or folder."""
    sequences: int = 4
    """Sequences of held-out text."""
    tokens: Int = None
    """Tokens of a sequence; by default the trained length, at most 512."""
    json: Json = False


@dataclass(frozen=True)
class DoctorOptions:
    """Report hardware and software of this machine, and how to install missing parts."""

    json: Json = False
