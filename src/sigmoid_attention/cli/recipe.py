"""`sigmoid-attention recipe`: ranks recipes by held-out loss, and recommends one."""

from dataclasses import replace

from rich.console import Console

from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.study_options import RecipeOptions
from sigmoid_attention.lab.markers import split_at_markers
from sigmoid_attention.lab.store import Store
from sigmoid_attention.studies.recipe import retrieval
from sigmoid_attention.studies.recipe.page import markers, publish, publish_text
from sigmoid_attention.studies.recipe.recall_standing import recall_report, recall_standings
from sigmoid_attention.studies.recipe.results import best_softmax
from sigmoid_attention.studies.recipe.run import run
from sigmoid_attention.studies.recipe.setting import (
    SETTINGS,
    TREND_CANDIDATES,
    RecipeSetting,
)
from sigmoid_attention.studies.recipe.standing import recommended, report, standings
from sigmoid_attention.studies.recipe.trend import differences, run_cells, trend_report
from sigmoid_attention.training.terminal import terminal

# Its runs are those of several settings, in folders of their own.
TREND = "trend"


def recipe(options: RecipeOptions) -> None:
    """Run or continue the study and print the ranking of the candidates."""
    if options.docs:
        # Checked before the training, not after it.
        split_at_markers(options.docs, *markers(options.setting))
    console: Console = terminal(errors=True)
    setting = _setting(options)
    if options.setting == TREND:
        _tell_trend(options, setting, console)
        return
    store = run(
        options.out, setting, resume=options.resume, workers=options.workers, console=console
    )
    if setting.source == retrieval.SOURCE:
        _tell_recall(options, setting, store)
        return
    ranking = standings(store, setting)
    if options.docs:
        publish(options.setting, setting, store, ranking, options.docs)
    if options.json:
        chosen = recommended(ranking)
        name = None if chosen is None else chosen.candidate
        print_json({"standings": ranking, "recommended": name})
        return
    print(report(ranking, setting))


def _tell_trend(options: RecipeOptions, setting: RecipeSetting, console: Console) -> None:
    stores = run_cells(
        options.out, setting, resume=options.resume, workers=options.workers, console=console
    )
    found = {cell: differences(store, cell.setting(setting)) for cell, store in stores.items()}
    if options.docs:
        publish_text(TREND, setting, trend_report(found), options.docs)
    if options.json:
        print_json({"percent": {cell.name: by_seed for cell, by_seed in found.items()}})
        return
    print(trend_report(found))


def _tell_recall(options: RecipeOptions, setting: RecipeSetting, store: Store) -> None:
    ranking = recall_standings(store, setting)
    if options.docs:
        publish_text(options.setting, setting, recall_report(ranking, setting), options.docs)
    if options.json:
        rows = [
            {"candidate": standing.candidate, "lr": standing.lr, "points": standing.points}
            for standing in ranking
        ]
        print_json({"standings": rows})
        return
    print(recall_report(ranking, setting))


def _setting(options: RecipeOptions) -> RecipeSetting:
    if options.setting not in SETTINGS:
        raise ValueError(f"setting must be one of {', '.join(SETTINGS)}, got {options.setting!r}")
    if options.setting == TREND and options.candidates:
        raise ValueError(f"candidates: the trend compares {' and '.join(TREND_CANDIDATES)} only")
    names = ("candidates", "seeds", "learning_rates")
    changes = {name: getattr(options, name) for name in names if getattr(options, name)}
    setting = replace(SETTINGS[options.setting], **changes)
    # Known before the training that there is something to compare with.
    best_softmax(setting.candidates)
    return setting
