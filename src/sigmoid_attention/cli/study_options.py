"""Options of the commands that run studies, as dataclasses that tyro reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sigmoid_attention.lab.option_types import Device, File, Flag, Float, Int, Json, Str, Workers

# Where `studies` keeps its rows.
CLAIMS_OUT = Path("runs/studies")


@dataclass(frozen=True)
class CompareOptions:
    """Train the same small transformer with softmax and with sigmoid attention, and compare.

    Both arms get the same text, parameters, steps and seeds. Measures held-out loss at 1, 2 and 4
    times the training length, associative recall and copying, statistics inside the network,
    time and memory. Prints a table, a verdict and the next steps, and writes OUT/report.html and
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
    """rope, alibi, rope+alibi, sincos, cape or none, in place of the recipe's; for both arms."""
    device: Device = "auto"
    out: Path = Path("runs/compare")
    """Folder for everything that is written; it must be empty or new unless --resume."""
    resume: Flag = False
    """Go on with what OUT has: finished parts are kept, an unfinished training continues. There may
    be more seeds than OUT was begun with."""
    json: Json = False


@dataclass(frozen=True)
class RecipeOptions:
    """Train candidates for the recommended recipe over learning rates and seeds, and rank them.

    Trains decoders of 0.8 million parameters, each for some minutes on one core. A killed study
    continues with --resume.
    """

    setting: str = "choose"
    """Sizes and seeds: trial, choose (seeds 0 to 2), report, report-shakespeare, report-long,
    report-wide, report-retrieval, or trend (seeds from 100 on)."""
    candidates: tuple[str, ...] = ()
    """Names of candidates, in place of the setting's."""
    seeds: tuple[int, ...] = ()
    """Seeds, in place of the setting's."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, in place of the setting's; each candidate is judged at its best."""
    workers: Workers = None
    out: Path = Path("runs/recipe")
    """Folder for the rows; it must be empty or new unless --resume."""
    resume: Flag = False
    """Continue the study in OUT; more candidates, seeds and learning rates can be added."""
    docs: File = None
    """A Markdown document: the table is written between its markers, with a figure."""
    json: Json = False


@dataclass(frozen=True)
class RoutingOptions:
    """Train small decoders with mixtures of experts, routed by softmax and by sigmoid, and compare.

    Each token visits two of eight experts (with no load balancing, a loss or a bias), or all eight.
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
    """Continue the study in OUT; more seeds can be added."""
    docs: File = None
    """A Markdown document: the findings are written between its markers, with a figure."""
    json: Json = False


@dataclass(frozen=True)
class RunStudiesOptions:
    """Run the missing tasks of studies, and show the findings.

    It always resumes, so there is no --resume: every finished task is a file in OUT/rows, named by
    a hash of its setting, and is not run again. An interrupt loses only the running tasks. To
    measure anew, name another folder.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names from `studies list`, or "mixtures" or "theory" for a group of studies."""
    all: Flag = False
    """Run all studies that have no command of their own."""
    out: Path = CLAIMS_OUT
    """Folder of the rows; it may hold rows of other studies."""
    workers: Workers = None
    json: Json = False


@dataclass(frozen=True)
class ListStudiesOptions:
    """Show every study, the command that runs it, and how much of it is done."""

    out: File = None
    """Folder to look in; if not given, the folder that each command writes to by default."""
    json: Json = False


@dataclass(frozen=True)
class ReportStudiesOptions:
    """Write OUT/report: a page in Markdown with every finding, and one figure per study."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Complete studies; by default all complete ones."""
    out: Path = CLAIMS_OUT
    """Folder of the rows."""
    docs: File = None
    """A Markdown document: the page is written between its markers, with figures in a folder."""
    json: Json = False


@dataclass(frozen=True)
class StudiesOptions:
    """List all studies, and test published claims about mixtures and about regularity."""

    action: tyro.conf.OmitArgPrefixes[
        Annotated[RunStudiesOptions, tyro.conf.subcommand("run", prefix_name=False)]
        | Annotated[ListStudiesOptions, tyro.conf.subcommand("list", prefix_name=False)]
        | Annotated[ReportStudiesOptions, tyro.conf.subcommand("report", prefix_name=False)]
    ]


@dataclass(frozen=True)
class RatesOptions:
    """Measure how fast estimates of a mixture of experts converge, with controls and a verdict.

    Options take several values between commas, and every combination is one cell. Each cell is
    fitted in two windows of n, on eight random truths with 10 replicates, and judged by the rule of
    the papers' tables. As with `studies run`, the same command continues with the rows in OUT.
    """

    gate: str = "sigmoid,softmax"
    """sigmoid, softmax, normalised_sigmoid, tanh, relu, hard_sigmoid, sqrt_softplus, sparsemax,
    entmax15."""
    expert: str = "gelu"
    """relu, gelu, tanh, silu (each also +bias), linear, poly2, poly3, poly4, constant."""
    regime: str = "dense"
    """Score of the over-specified expert at the truth: sparse (zero) or dense."""
    score: str = "linear"
    """linear, partially_quadratic, fully_quadratic, euclidean."""
    d: str = "2"
    """Dimensions of the inputs."""
    k: str = "2"
    """True experts."""
    extra: str = "1"
    """Experts fitted in addition to the true ones. Above 0 the loss is that of the over-specified
    expert, at 0 that of all experts."""
    claim: float = -0.5
    """The claimed exponent of n; 0 means slower than any power."""
    quick: Flag = False
    """Three truths and two sizes a window, for a trial: too few for most verdicts."""
    out: Path = Path("runs/rates")
    """Folder of the rows, and of the report."""
    workers: Workers = None
    json: Json = False


@dataclass(frozen=True)
class UniversalityOptions:
    """Build the transformer of the universality theorem for a function, and measure its error.

    Prints the design (layers, parameters), then the smallest gap and the errors with
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
    """Largest allowed error, in L^p over the box."""
    p: float = 2.0
    """Exponent of the L^p norm."""
    low: float = 0.0
    """Lower end of the box in every channel."""
    high: float = 1.0
    """Upper end of the box in every channel."""
    steepness: Float = None
    """Steepness of the sigmoids; by default a value that is provably sufficient."""
    max_layers: int = 20_000
    """Refuse to build more layers than this."""
    samples: int = 2048
    """Random sequences on which errors are measured."""
    trained: Flag = False
    """Also train small sigmoid and softmax transformers on the function, and write OUT/size.svg.
    Continues with the rows in OUT/trained."""
    seeds: int = 3
    """Trainings per size."""
    steps: int = 600
    """Training steps."""
    out: Path = Path("runs/universality")
    """Folder for the figures and the rows of the trained."""
    json: Json = False
