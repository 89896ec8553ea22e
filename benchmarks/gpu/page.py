"""docs/gpu.md and its figures, written from the rows alone."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.gpu import plan
from benchmarks.gpu.errors import FEATURES
from benchmarks.gpu.measures import GPU_MEASURES, copy_speed, read_speed, with_ours
from benchmarks.gpu.peers import NAMES, OURS, SIGMOID
from benchmarks.gpu.picture import picture
from benchmarks.gpu.readings import Reading
from benchmarks.listing import ABSENT, times
from benchmarks.operations import Case
from benchmarks.rows import Key, Row, file_name
from benchmarks.targets import GPU_TARGETS, Standing, read_targets, standing
from sigmoid_attention.report.format import token_count

PAGE = "docs/gpu.md"
# The host's share of the median round, from which on the host may be what was timed.
HOST_BOUND = 0.9
NOT_MEASURED = "Not measured on this device yet."
NOT_MEASURED_HERE = "not measured on this device yet."
WIDTH = 100
INTRODUCTION = """\
# On a GPU

What `make bench-gpu` measured, written by `python -m benchmarks publish benchmarks/results`. Every
row, with its device, driver, versions and clocks, is in `benchmarks/results/`.

It takes less than nine minutes; the next call measures what is left. A machine with a GPU needs
torch for CUDA, numpy, pyarrow and rich. If it has no network, copy a folder with the other packages
to it (triton-sigmoid is a peer, the others read the command line):

```sh
# On a machine with a network:
python3 -m pip install --target wheels --no-deps --only-binary=:all: --python-version 3.12 \\
  tyro docstring-parser typeguard triton-sigmoid==0.1.2
# On the machine with the GPU, in the repository's folder:
export PYTHONPATH=src:wheels
python3 -m benchmarks gpu --out benchmarks/results --resume
# Where the extra `lab` is installed, with the results copied back:
python3 -m benchmarks publish benchmarks/results
```

Triton inspects all arguments of every launch. `SIGMOID_ATTENTION_GPU_LAUNCH_CACHE=1` replays the
launches of repeated calls without that, by a private call of Triton. It is off by default until it
has been timed here.

The row's mass (`sigmoid_attention_with_mass`) has not run on a GPU: its kernels are tested in
Triton's interpreter and compiled for Hopper, and nothing here measures them."""

Rows = dict[Key, Row]


def gpu_pages(results: dict[str, tuple[Rows, dict[str, Reading]]]) -> dict[str, bytes]:
    """The page on all devices and, for each with rows to draw, its figure."""
    parts = [INTRODUCTION]
    files: dict[str, bytes] = {}
    for device, (rows, readings) in results.items():
        drawn, image = picture(rows, device), f"docs/benchmarks/gpu-{file_name(device)}.svg"
        if drawn:
            files[image] = drawn
        parts += _device(device, rows, readings, image if drawn else "")
    page = "\n\n".join(part for part in parts if part) + "\n"
    return files | {PAGE: page.encode()}


def _device(device: str, rows: Rows, readings: dict[str, Reading], image: str) -> list[str]:
    parts = [f"## {device}", _setting(rows)]
    if image:
        parts.append(f"![TFLOP/s by length: this operator and its peers]({_from_page(image)})")
    parts += ["### Goals", _legend_of_goals(), _goals(rows)]
    parts += ["### Speed", _legend_of_speed()]
    for title, operation, mask, dim in (
        (f"{name}, {mask}, D = {dim}", operation, mask, dim)
        for name, operation in (("Forward", "forward"), ("Backward", "backward"))
        for dim in plan.DIMS
        for mask in ("full", "causal")
    ):
        cases = [c for c in plan.cases(operation) if (c.mask, c.dim) == (mask, dim)]
        parts.append(
            _table(f"{title}, TFLOP/s", rows, sorted(cases, key=lambda c: c.length), _length, _rate)
        )
    parts += ["### ALiBi, causal", _legend_of_alibi()]
    for name, operation in (("Forward", "alibi-forward"), ("Backward", "alibi-backward")):
        cases = plan.cases(operation)
        parts.append(_table(f"{name}, ms", rows, cases, _length, _milliseconds))
    parts += ["### Decoding", _legend_of_decoding(rows)]
    decoding = sorted(plan.cases("decode"), key=lambda c: (c.feature, c.batch))
    parts.append(_table("GB/s", rows, decoding, _batch, _gigabytes))
    parts += ["### Errors", _legend_of_errors()]
    errors = plan.cases("error")
    for dim in plan.DIMS:
        for mask in ("full", "causal"):
            own = [c for c in errors if not c.feature and (c.dim, c.mask) == (dim, mask)]
            own.sort(key=lambda c: c.length)
            title = f"bf16, {mask}, D = {dim}, units of rounding"
            parts.append(_table(title, rows, own, _length, _units))
    timed = [plan.alibi_error(length) for length in plan.ALIBI_LENGTHS]
    parts.append(_table("bf16, ALiBi as it is timed", rows, timed, _length, _units))
    parts.append(_features(rows, [c for c in errors if c.length == plan.FEATURE_LENGTH]))
    parts += ["### The device itself", _readings(readings)]
    parts += ["### Refused", _refusals(rows)]
    return parts


def _setting(rows: Rows) -> str:
    if not rows:
        return NOT_MEASURED
    stamp = max((row.stamp for row in rows.values()), key=lambda own: own["date"])
    versions = ", ".join(
        f"{name} {stamp['versions'][name]}"
        for name in ("torch", "triton", "cuda", "cudnn")
        if name in stamp["versions"]
    )
    said = f"Driver {stamp['driver']}, {versions}, {stamp['date'][:10]}; source {stamp['source']}."
    return textwrap.fill(said, WIDTH)


def _goals(rows: Rows) -> str:
    ours = with_ours(rows)
    standings = [standing(target, ours) for target in read_targets(GPU_TARGETS)]
    return _markdown(
        ["goal", "bound", "worst", "stands", "by", "against"],
        [_goal(standing) for standing in standings],
    )


def _goal(standing: Standing) -> list[str]:
    target = standing.target
    worst = ABSENT if standing.worst is None else f"{standing.worst[1]:.3g}"
    bound = f"{'≥' if target.at_least else '≤'} {target.bound:g}"
    by, against = ", ".join(standing.by), "; ".join(NAMES[peer] for peer in standing.against)
    return [target.name, bound, worst, standing.verdict, by or ABSENT, against or ABSENT]


Cell = Callable[[Row, Rows], str]


def _table(
    title: str, rows: Rows, cases: Sequence[Case], head: Callable[[Case], str], cell: Cell
) -> str:
    """A line for each peer, a column for each case; peers without rows have no line."""
    lines = []
    for peer in NAMES:
        found = [rows.get((case, peer, 0)) for case in cases]
        cells = [ABSENT if row is None or row.refused else cell(row, rows) for row in found]
        if set(cells) != {ABSENT}:
            lines.append([NAMES[peer], *cells])
    if not lines:
        return f"{title}: {NOT_MEASURED_HERE}"
    return _markdown([title, *map(head, cases)], lines)


def _length(case: Case) -> str:
    return f"n = {token_count(case.length)}"


def _batch(case: Case) -> str:
    return " ".join(part for part in (f"B = {case.batch}", case.feature) if part)


def _rate(row: Row, rows: Rows) -> str:
    low, high = min(row.costs), max(row.costs)
    spread = (high - low) / (2 * row.cost)
    return f"{row.flops_per_second / 1e12:.0f} ±{spread:.0%}{_host(row)}"


def _host(row: Row) -> str:
    """A mark where the host takes as long to queue a call as the device to do it."""
    bound = row.cpu and statistics.median(row.cpu) >= HOST_BOUND * statistics.median(row.wall)
    return ", host" if bound else ""


def _milliseconds(row: Row, rows: Rows) -> str:
    gain = GPU_MEASURES["over_softmax"](row, rows)
    said = f" ({times(gain)}×)" if gain and row.peer in OURS else ""
    return f"{row.cost * 1e3:.3g}{said}{_host(row)}"


def _gigabytes(row: Row, rows: Rows) -> str:
    share = GPU_MEASURES["share_of_copy"](row, rows)
    said = f" ({share:.0%})" if share is not None else ""
    graph = "" if row.stamp.get("graph", True) else ", no graph"
    return f"{read_speed(row) / 1e9:.0f}{said}{graph}{_host(row)}"


def _units(row: Row, rows: Rows) -> str:
    units = GPU_MEASURES["floor_units"](row, rows)
    return ABSENT if units is None else f"{units:.3g}"


def _features(rows: Rows, cases: Sequence[Case]) -> str:
    columns = list(dict.fromkeys((case.dtype, case.dim) for case in cases))
    lines = []
    for feature in FEATURES:
        for peer in OURS:
            by_column = {
                (c.dtype, c.dim): rows.get((c, peer, 0)) for c in cases if c.feature == feature
            }
            found = [by_column.get(column) for column in columns]
            cells = [ABSENT if row is None or row.refused else _units(row, rows) for row in found]
            if set(cells) != {ABSENT}:
                lines.append([f"{feature}, {peer}", *cells])
    if not lines:
        return f"Every feature: {NOT_MEASURED_HERE}"
    heads = [f"{dtype}, D = {dim}" for dtype, dim in columns]
    return _markdown([f"feature, n = {plan.FEATURE_LENGTH}", *heads], lines)


def _readings(readings: dict[str, Reading]) -> str:
    if not readings:
        return NOT_MEASURED
    lines = []
    for reading in readings.values():
        value, spread = ABSENT, reading.refused or ""
        if reading.values:
            value = f"{reading.value:.3g}"
            spread = f"{min(reading.values):.3g} to {max(reading.values):.3g}"
        lines.append([reading.name, value, reading.unit, spread])
    return _markdown(["reading", "median", "unit", "rounds"], lines)


def _refusals(rows: Rows) -> str:
    """What could not be measured, with each reason once."""
    where: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in rows.values():
        if row.refused:
            case = row.case
            dim = f"D={case.dim}" if case.operation != "copy" else ""
            what = " ".join(p for p in (case.operation, case.dtype, dim, case.feature) if p)
            lengths = where.setdefault((row.peer, row.refused), {}).setdefault(what, [])
            lengths.append(case.length)
    lines = []
    for (peer, reason), lengths in where.items():
        cases = "; ".join(
            f"{what} n={', '.join(token_count(n) for n in sorted(set(own)))}"
            for what, own in sorted(lengths.items())
        )
        said = f"- {NAMES.get(peer, peer)}: {reason} ({cases})"
        lines.append(textwrap.fill(said, WIDTH, subsequent_indent="  "))
    return "\n".join(lines) or (NOT_MEASURED if not rows else "Nothing.")


def _legend_of_goals() -> str:
    return _filled("""
        A goal is judged by the kernel that `impl="auto"` takes (by), errors by the worse of both
        kernels, against the peers that were measured everywhere. It is incomplete without cuDNN
        and flash_attn, on short rows also without triton-sigmoid. FlexAttention is measured last
        on short rows.""")


def _legend_of_speed() -> str:
    return _filled(f"""
        bf16, {plan.TOKENS} tokens and {plan.COLUMNS} columns (heads times D) in all, bias -log n.
        Median of rounds in which the peers take turns, with half the spread of the rounds. Only
        matrix products of visible pairs are counted: two forward, five backward. "Host" means that
        queueing a call took the host 90% of the device's time or more.""")


def _legend_of_alibi() -> str:
    return _filled(f"""
        {plan.ALIBI_HEADS} heads, D = 128, logits bounded by 8 before bias and slope. The softmax
        peers run without slopes, dense and causal, which is faster. In brackets: how many times
        faster than the best of them.""")


def _legend_of_decoding(rows: Rows) -> str:
    copies = [row for row in rows.values() if row.case.operation == "copy" and row.costs]
    copied = f"{copy_speed(copies[0]) / 1e9:.0f} GB/s" if copies else "not measured yet"
    return _filled(f"""
        One query of 32 heads against {plan.CACHE} keys of 8 heads, D = 128, bf16: bytes of keys and
        values a second, in brackets their share of the bandwidth of a copy ({copied}). Each step is
        a captured graph with cold caches.""")


def _legend_of_errors() -> str:
    return _filled(f"""
        The largest error of output and gradients against float64, relative in the Euclidean norm,
        in units of the error of rounding the exact weights and logit gradients to the dtype. Bias
        -log n. Peers are those that compute a sigmoid:
        {", ".join(NAMES[peer] for peer in SIGMOID)}.""")


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH)


def _from_page(path: str) -> str:
    return path.removeprefix("docs/")


def _markdown(head: Iterable[Any], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *map(list, lines)]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
