"""The next steps after a comparison, computed from its rows.

The advice covers, in this order: comparisons without an answer (neither arm learnt the text, or too
few seeds); worse results (another learning rate, other positions, longer training if the gap is
closing); undecided questions (the number of seeds that would decide them); tasks that neither arm
learnt; a training step without a fused kernel; and, if nothing is worse, a run on the user's text.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from sigmoid_attention.lab.statistics import FEWEST_FOR_INTERVAL, t_quantile
from sigmoid_attention.studies.compare.results import Advice, Fusion, Solved, SummaryRow
from sigmoid_attention.studies.compare.settings import SEEDS, CompareSetting, compare_setting
from sigmoid_attention.studies.compare.standing import margin, standing
from sigmoid_attention.studies.compare.summary import LOSS, late_change_of_gap
from sigmoid_attention.studies.compare.verdict import listed, longer, steps, tasks

# More seeds than this are not advised, because larger models would be more informative.
MOST_SEEDS = 16
# The fewest seeds solved by one arm alone with which the sign test can decide.
FEWEST_DISCORDANT = 6
OTHER_MODELS = Advice(
    "This run says nothing about vision models and encoders: the recipe is for decoders that read "
    "bytes. In a small trial a vision transformer trained more slowly with sigmoid attention. "
    "Compare there before you switch, and try QK norm and layer scale first."
)


def advise(
    summary: Sequence[SummaryRow],
    rows: pa.Table,
    fusion: Fusion | None,
    setting: CompareSetting,
    out: Path,
) -> tuple[Advice, ...]:
    """The next steps after the comparison in `out`, with their commands."""
    text = [row for row in summary if row.metric == LOSS]
    if text and text[0].silent:
        return (_train_longer(rows, setting, out),)
    if not text or text[0].difference.n < FEWEST_FOR_INTERVAL:
        return (
            Advice(
                f"Train more seeds: {FEWEST_FOR_INTERVAL} are the fewest that give an interval. "
                "What is finished is kept.",
                _more(setting, out, seeds=max(SEEDS, setting.seeds)),
            ),
        )
    return (
        *_worse(text, rows, setting, out),
        *_undecided(summary, text[0], setting, out),
        *_not_learnt(summary, setting, out),
        *_unfused(fusion, setting),
        *_as_good(summary, text, setting, out),
        OTHER_MODELS,
    )


def _train_longer(rows: pa.Table, setting: CompareSetting, out: Path) -> Advice:
    seeds = max(SEEDS, setting.seeds)
    if setting.preset == "tiny":
        return Advice(
            "The preset tiny only shows that everything works. Take the preset small.",
            _larger(setting, out, seeds=seeds),
        )
    return Advice(
        "Train longer, until at least one arm beats a table of byte pairs.",
        _other(setting, out, "longer", steps=longer(rows), seeds=seeds),
    )


def _undecided(
    summary: Sequence[SummaryRow], text: SummaryRow, setting: CompareSetting, out: Path
) -> Iterator[Advice]:
    open_questions = {"Held-out text": text} if standing(text) == "undecided" else {}
    open_questions |= {t.name: t.end for t in tasks(summary) if t.standing == "undecided"}
    for name, row in open_questions.items():
        needed = seeds_to_solve(row.solved) if row.solved else seeds_to_decide(row)
        if row.solved and row.solved.softmax == row.solved.sigmoid == row.solved.both:
            yield Advice(
                f"{name}: the same seeds solve it under both arms. Here the seed decides and not "
                "the arm. A larger preset, for a GPU, trains the task longer.",
                _larger(setting, out),
            )
        elif needed is None:
            yield Advice(
                f"{name} is undecided, and more than {MOST_SEEDS} seeds would be needed: at this "
                "size the arms are too close. Compare them at a larger size.",
                _larger(setting, out),
            )
        else:
            yield Advice(
                f"{name} is undecided. If further seeds scatter like these, about {needed} would "
                "decide it. What is finished is kept.",
                _more(setting, out, seeds=needed),
            )


def seeds_to_decide(row: SummaryRow) -> int | None:
    """The number of seeds that would decide a question if its mean and spread stayed the same.

    A question is decided if its interval excludes 0 or lies within the margin. None if more than
    `MOST_SEEDS` would be needed.
    """
    apart = row.difference
    if not apart.bounded:
        return SEEDS
    # Half an interval over n seeds is t s / sqrt(n), with s the standard deviation over seeds.
    spread = (apart.high - apart.mean) * math.sqrt(apart.n) / t_quantile(apart.n - 1)
    for n in range(apart.n + 1, MOST_SEEDS + 1):
        half = t_quantile(n - 1) * spread / math.sqrt(n)
        if half < abs(apart.mean) or abs(apart.mean) + half <= margin(row):
            return n
    return None


def seeds_to_solve(solved: Solved) -> int | None:
    """The number of seeds that would decide an all-or-nothing task, if arms differ as often."""
    alone = abs(solved.softmax - solved.sigmoid)
    needed = math.ceil(FEWEST_DISCORDANT * solved.seeds / alone) if alone else MOST_SEEDS + 1
    return needed if needed <= MOST_SEEDS else None


def _worse(
    text: Sequence[SummaryRow], rows: pa.Table, setting: CompareSetting, out: Path
) -> Iterator[Advice]:
    if not any(standing(row) == "worse" for row in text):
        return
    rates = setting.text
    if standing(text[0]) == "worse" and rates.lr == rates.softmax_lr:
        half = float(f"{rates.lr / 2:.2g}")
        yield Advice(
            f"Both arms had the learning rate {rates.lr:g}. Try another for the sigmoid arm alone, "
            "such as half of it.",
            _other(setting, out, f"lr{half:g}", lr=half, softmax_lr=rates.softmax_lr),
        )
    if setting.position != "alibi":
        yield Advice(
            "Try ALiBi positions. With them the gap was smaller in the study that "
            "“sigmoid-attention recipe” repeats.",
            _other(setting, out, "alibi", position="alibi"),
        )
    change = late_change_of_gap(rows)
    if change.bounded and change.high < 0:
        yield Advice(
            f"The gap on held-out text closed by {-change.mean:.3f} bits per byte in the second "
            "half of training. See whether it goes on closing.",
            _other(setting, out, "longer", steps=2 * steps(rows)),
        )


def _not_learnt(
    summary: Sequence[SummaryRow], setting: CompareSetting, out: Path
) -> Iterator[Advice]:
    missed = [task.name.lower() for task in tasks(summary) if task.end.silent]
    if missed:
        yield Advice(
            f"Neither arm learnt {listed(missed)}. A larger preset trains such tasks longer.",
            _larger(setting, out),
        )


def _unfused(fusion: Fusion | None, setting: CompareSetting) -> Iterator[Advice]:
    if fusion and not fusion.gains and setting.device == "cpu":
        yield Advice(
            "Sigmoid attention ran without its fused kernel, so its times are no measure of it. "
            "See what is missing.",
            "sigmoid-attention doctor",
        )


def _as_good(
    summary: Sequence[SummaryRow],
    text: Sequence[SummaryRow],
    setting: CompareSetting,
    out: Path,
) -> Iterator[Advice]:
    standings = [standing(row) for row in text] + [task.standing for task in tasks(summary)]
    if not {"worse", "undecided"} & set(standings):
        preset = _next_preset(setting)
        taken = compare_setting(preset).text.steps
        yield Advice(
            "Nothing here speaks against sigmoid attention. Compare on your own text, at the size "
            "that you need.",
            _other(
                setting, out, "mine", data="YOUR_TEXT", preset=preset, steps=taken, device="auto"
            ),
        )


def _next_preset(setting: CompareSetting) -> str:
    return {"tiny": "small"}.get(setting.preset, "medium")


def _larger(setting: CompareSetting, out: Path, **changes: object) -> str:
    preset = _next_preset(setting)
    if preset == setting.preset:
        return ""
    taken = compare_setting(preset).text.steps
    return _other(setting, out, preset, preset=preset, steps=taken, device="auto", **changes)


def _more(setting: CompareSetting, out: Path, **changes: int) -> str:
    """The command that continues in the same folder."""
    return f"{setting.command(**changes)} --out {shlex.quote(str(out))} --resume"


def _other(setting: CompareSetting, out: Path, suffix: str, **changes: object) -> str:
    """The command that starts in another folder."""
    return f"{setting.command(**changes)} --out {shlex.quote(f'{out}-{suffix}')}"
