"""What each command takes: one frozen dataclass each, from which tyro makes options and help."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sigmoid_attention.studies.registry import COMMAND_STUDIES

PURPOSE = (
    "Trains, compares, converts and examines transformers whose attention weighs each key by a "
    "sigmoid of its own logit, where others take a softmax over all of them."
)
COMPLETION = (
    "Tab completion: --tyro-print-completion bash (or zsh, tcsh) prints a script for your shell; "
    'in bash, eval "$(sigmoid-attention --tyro-print-completion bash)" turns it on.'
)

# Where `studies` keeps its rows.
CLAIMS_OUT = Path("runs/studies")

# In the help an option that has no default, and one that is off, say so in their own words.
Int = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Float = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
Str = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Compare:
    """Train the same small transformer with softmax and with sigmoid attention, and compare.

    Both arms get the same text, parameters, steps and seeds. Measures held-out loss at 1, 2 and 4
    times the training length, associative recall and copying, what goes on inside the network,
    time and memory. Prints a table, a verdict and what to do next, and writes OUT/report.html and
    OUT/rows.parquet.
    """

    data: str = "stdlib"
    """Text to train on: "stdlib" (the source of Python's standard library, no download),
    "shakespeare" (one download of 5 MB), or the path of a file or folder."""
    preset: str = "small"
    """Size of the comparison: tiny (seconds, proves nothing), small (minutes on a laptop), medium
    (for a GPU)."""
    seeds: int = 4
    """How many times each arm is trained; intervals need 3 or more."""
    steps: Int = None
    """Training steps on text, in place of the preset's."""
    lr: Float = None
    """Peak learning rate on text of both arms, in place of the preset's."""
    softmax_lr: Float = None
    """Peak learning rate on text of the softmax arm alone."""
    recipe: str = "recommended"
    """Position, norms and bias of both arms: recommended or paper."""
    position: Str = None
    """rope, alibi, sincos, cape or none, in place of the recipe's; for both arms."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, or cuda."""
    out: Path = Path("runs/compare")
    """Folder for everything that is written; it must be empty or new unless --resume."""
    resume: Flag = False
    """Go on with what OUT has: finished parts are kept, an unfinished training continues. There may
    be more seeds than OUT was begun with."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Train:
    """Train one small language model; OUT then holds all that `generate` needs.

    OUT/loss.csv has the losses of every step, in bits a byte, and OUT/loss.svg their curve.
    """

    out: Path
    """Folder for checkpoint, tokenizer and configuration; empty or new unless --resume."""
    data: str = "stdlib"
    """"stdlib", "shakespeare", or the path of a file or folder."""
    binaries: Flag = False
    """Also read files that are no text; without it a folder's are skipped, and one is refused."""
    preset: str = "small"
    """Size of the model: tiny, small, medium (wants a GPU), gala-85m, gala-1b, gala-7b (want
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
    heads: Int = None
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
    """Of the initial weights and of the order of the data."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, or cuda."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    eval_every: int = 200
    """Steps between tests on held-out text, which OUT/loss.csv keeps; 0 tests at the end only."""
    record: int = 0
    """Steps between records of the norms and extremes inside the network, as Parquet under
    OUT/records; 0 keeps none."""
    resume: Flag = False
    """Go on from the checkpoint in OUT; everything but --steps must be as it was."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Generate:
    """Let a trained model write."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained model: the --out of `train`, or one of runs/ in that of `compare`."""
    prompt: str = ""
    """What the text begins with."""
    max_new_tokens: int = 200
    """Stop after this many tokens, or where the model ends the document."""
    temperature: float = 0.8
    """0 always takes the likeliest token; 1 draws as the model thinks."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together reach this probability."""
    seed: int = 0
    """Of the draw."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, or cuda."""


@dataclass(frozen=True)
class Recipe:
    """Train candidates for the recommended recipe over learning rates and seeds, and rank them.

    Seven candidates for each learning rate and seed, each about a minute of one core.
    """

    seeds: int = 3
    """How many times each candidate is trained at each learning rate."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Peak learning rates; each candidate is judged at its best."""
    out: Path = Path("runs/recipe")
    """Folder for the rows; it must be empty or new unless --resume."""
    resume: Flag = False
    """Go on with what OUT has; more seeds and learning rates may be asked for."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Routing:
    """Train small decoders with mixtures of experts, routed by softmax and by sigmoid, and compare.

    Two experts of eight a token (load balanced by nothing, by a loss, by a bias), and all of them.
    Both arms get the same text, weights, parameters and operations. Measures held-out loss, how
    even the experts' load is, how alike they are, and how often tokens change experts.
    """

    data: str = "stdlib"
    """"stdlib", "shakespeare", or the path of a file or folder."""
    seeds: int = 4
    """How many times each arm is trained; intervals need 3 or more."""
    steps: int = 300
    """Training steps."""
    out: Path = Path("runs/routing")
    """Folder for the rows; it must be empty or new unless --resume."""
    resume: Flag = False
    """Go on with what OUT has; more seeds may be asked for."""
    docs: File = None
    """A document in Markdown, which gets the findings between its markers, and a figure."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Convert:
    """Convert a pretrained softmax model to sigmoid attention, taught by the model itself.

    Starts where the sigmoid does what the softmax did, fits the bias of every head, and trains
    layer by layer and then all layers for the parent's hidden states and predictions. OUT/model is
    then a checkpoint of transformers, OUT/curve.json what was measured on the way.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A folder with a checkpoint of transformers, a .gguf file, or smollm2-135m or
    all-minilm-l6-v2 (one download of 93 and 84 MB)."""
    out: Path
    """Folder for model, checkpoints and measurements; empty or new unless --resume."""
    data: str = "shakespeare"
    """Text to train on: "shakespeare", "stdlib", or the path of a file or folder."""
    steps: int = 240
    """Steps on all layers at once."""
    layer_steps: int = 30
    """Steps on each layer before that; 0 trains all layers at once from the start."""
    form: str = "linear"
    """What the bias of a head ends as: linear (in what the layer is given for the token) or
    constant (a number)."""
    gain: float = 1.5
    """Weights start as p / (1 + p / gain) where the softmax has p."""
    seq_len: Int = None
    """Tokens a sequence, for an encoder the longest; 1024, or as many as the model has positions,
    if not given."""
    batch_size: Int = None
    """Sequences a step; as many as make 1024 tokens if not given."""
    layer_batches: int = 16
    """Batches that each layer is fitted to."""
    layer_lr: float = 2e-4
    """Learning rate of a layer's weights in the first stage."""
    bias_lr: float = 1e-2
    """Learning rate of the biases."""
    lr: float = 2e-4
    """Peak learning rate of the weights in the second stage."""
    temperature: float = 1.0
    """Of the predictions that the parent teaches."""
    hidden_weight: float = 1.0
    """Weight of the hidden states' error in the second stage."""
    logit_weight: float = 1.0
    """Weight of the divergence from the parent's predictions in the second stage."""
    text_weight: float = 0.0
    """Weight of the text's own next tokens; with 0 for the other two no parent teaches, and with
    --layer-steps 0 as well the conversion is a plain fine-tuning."""
    repeats: float = 0.5
    """Share of a language model's training text that came before in its sequence."""
    bf16: Flag = False
    """Compute forward passes of the training in bfloat16; parameters stay in float32."""
    seed: int = 0
    """Of the order of the data."""
    heldout_sequences: int = 16
    """Sequences of held-out text for each evaluation."""
    needles: tuple[int, ...] = (256, 1024, 2048)
    """Tokens of the texts in which a language model looks for a number, before and after."""
    evaluate_every: int = 50
    """Steps of the second stage between evaluations."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, or cuda."""
    resume: Flag = False
    """Go on with what OUT has."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class RunStudies:
    """Do what is missing of some studies, and show what they found.

    There is no --resume, because it always does: every finished task is a file of OUT/rows, named
    by a hash of its setting, and a task whose file is there is not done again. Interrupting loses
    only the tasks in flight. To measure afresh, name another folder.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Studies, as `studies list` names them, or "mixtures" or "theory" for all of a room."""
    all: Flag = False
    """All of them."""
    out: Path = CLAIMS_OUT
    """Folder of the rows; it may hold those of other studies."""
    workers: Int = None
    """Processes; one a usable core if not given."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class ListStudies:
    """Show every study, the command that runs it, and how much of it is done."""

    out: File = None
    """Folder to look in; if not given, the folder that each command writes to by default."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class ReportStudies:
    """Write OUT/report: a page in Markdown with every finding, and a figure a study."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Studies, which must be complete; all complete ones if not given."""
    out: Path = CLAIMS_OUT
    """Folder of the rows."""
    docs: File = None
    """A document in Markdown, which gets the same between its markers, with figures beside it."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Studies:
    """Put published claims about mixtures of experts and about steepness to the test."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[RunStudies, tyro.conf.subcommand("run", prefix_name=False)]
        | Annotated[ListStudies, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[ReportStudies, tyro.conf.subcommand("report", prefix_name=False)]
    ]


@dataclass(frozen=True)
class Rates:
    """Measure how fast estimates of a mixture of experts converge, with controls and a verdict.

    Lists between commas make cells of all combinations. Each is fitted in two windows of n on
    three random truths with 20 replicates, and judged as the studies of the papers' tables are.
    Rows are kept as those of `studies run` are: the same command goes on with what OUT has.
    """

    gate: str = "sigmoid,softmax"
    """sigmoid, softmax, normalised_sigmoid, tanh, relu, hard_sigmoid, sqrt_softplus, sparsemax,
    entmax15."""
    expert: str = "gelu"
    """relu, gelu, tanh, silu (each also +bias), linear, poly2, poly3, poly4, constant."""
    regime: str = "dense"
    """What the over-specified expert's score is at the truth: sparse (zero) or dense."""
    score: str = "linear"
    """linear, partially_quadratic, fully_quadratic, euclidean."""
    d: str = "2"
    """Dimensions of the inputs."""
    k: str = "2"
    """True experts."""
    extra: str = "1"
    """Experts fitted beyond the true ones. With some the loss is that of the over-specified
    expert, with 0 that of all."""
    claim: float = -0.5
    """Exponent of n that verdicts are given on; 0 is slower than any power."""
    quick: Flag = False
    """One truth and a third of the sizes, to try things out."""
    out: Path = Path("runs/rates")
    """Folder of the rows, and of the report."""
    workers: Int = None
    """Processes; one a usable core if not given."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Regularity:
    """Bound and measure how much every layer of a trained model moves with its input.

    Prints a line for each residual branch: a certificate for all inputs in a ball, a tighter one
    at a text, and the norm of the Jacobian there, measured. Writes OUT/certificate.json and .svg.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a trained model: the --out of `train`, or one of runs/ in that of `compare`."""
    radius: float
    """The largest norm of an embedded token that the certificate is for."""
    lower: float = 0.0
    """The least norm of one; norm layers are steep near zero, so that more makes bounds smaller."""
    text: str = "def first(items):\n    return items[0]\n"
    """Where the network is measured; read again from its start where it is too short."""
    tokens: int = 64
    """Length of the input."""
    seconds: float = 60.0
    """Wall time for measuring the whole network; layers take what they need."""
    out: Path = Path("runs/regularity")
    """Folder for the certificate and its figure."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Universality:
    """Build the transformer of the universality theorem for a function, and measure its error.

    Prints what will be built (layers, parameters), then the smallest gap and the errors with
    Heaviside and with sigmoid attention. Writes OUT/steepness.svg.
    """

    function: Annotated[str, tyro.conf.Positional]
    """sorting, centre, max, mix, edge, several between commas, all, or package.module:function: it
    takes and returns a float64 tensor (n, d), and permuting its tokens permutes what it returns."""
    n: int = 3
    """Tokens."""
    d: int = 1
    """Channels."""
    error: float = 0.1
    """To stay below, in L^p over the box."""
    p: float = 2.0
    """Of the norm."""
    low: float = 0.0
    """Lower end of the box in every channel."""
    high: float = 1.0
    """Upper end."""
    steepness: Float = None
    """Of the sigmoids; as much as is provably enough if not given."""
    max_layers: int = 20_000
    """More are refused."""
    samples: int = 2048
    """Random sequences by which errors are measured."""
    trained: Flag = False
    """Also train small sigmoid and softmax transformers on the function, and write OUT/size.svg.
    Goes on with what OUT/trained has."""
    seeds: int = 3
    """Of each trained size."""
    steps: int = 600
    """Of training."""
    out: Path = Path("runs/universality")
    """Folder for the figures and the rows of the trained."""
    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has, and what to do about what is missing."""

    json: Flag = False
    """Print what was found as JSON in place of tables; progress stays on standard error."""


Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Recipe, tyro.conf.subcommand("recipe")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Routing, tyro.conf.subcommand("routing")]
    | Annotated[Studies, tyro.conf.subcommand("studies")]
    | Annotated[Rates, tyro.conf.subcommand("rates")]
    | Annotated[Regularity, tyro.conf.subcommand("regularity")]
    | Annotated[Universality, tyro.conf.subcommand("universality")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def parse(
    arguments: Sequence[str],
) -> (
    Compare
    | Train
    | Generate
    | Recipe
    | Convert
    | Routing
    | Studies
    | Rates
    | Regularity
    | Universality
    | Doctor
):
    """The command that was asked for; prints help or a complaint and exits where there is none."""
    questions = [f"{study.name}: {study.question}" for study in COMMAND_STUDIES]
    return tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="sigmoid-attention",
        description="\n\n".join([PURPOSE, *questions, COMPLETION]),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def in_flags(sentence: str, asked: object) -> str:
    """The sentence with the fields of a command under the names that they are typed by.

    Example:
        >>> asked = Train(Path("out"))
        >>> in_flags("vocab_size must be at least 257", asked)
        '--vocab-size must be at least 257'
        >>> in_flags("lr must be positive; train.lr is another", asked)
        '--lr must be positive; train.lr is another'
    """
    commands = [asked, *([asked.action] if isinstance(asked, Studies) else [])]
    for command in commands:
        for name in vars(command):
            if name in POSITIONAL:
                continue
            flag = f"--{name.replace('_', '-')}"
            sentence = re.sub(rf"^{name}(?=:| (must|is|cannot|holds|already) )", flag, sentence)
            if "_" in name:
                sentence = re.sub(rf"(?<![\w.-]){name}\b", flag, sentence)
    return sentence


def with_nearest(sentence: str) -> str:
    """The sentence of a name that is not in a list, with the name of the list that is meant.

    Example:
        >>> with_nearest("preset must be one of tiny, small, got 'smal'")
        "preset must be one of tiny, small, got 'smal'; did you mean small?"
        >>> with_nearest("recipe must be 'paper' or 'recommended', got 'secret'")
        "recipe must be 'paper' or 'recommended', got 'secret'"
    """
    found = re.search(r"must be (one of )?(.+)(?:, got|; there is none at) '([^']*)'$", sentence)
    if not found:
        return sentence
    in_words, listed, got = found.groups()
    names = re.findall(r"[\w.+-]+" if in_words else r"'([\w.+-]+)'", listed)
    near = difflib.get_close_matches(got, names, 1)
    return f"{sentence}; did you mean {near[0]}?" if near else sentence


POSITIONAL = ("folder", "model", "function", "names", "action")
