"""`sigmoid-attention recipe`: which bias and norms train best, as a table and a recommendation."""

from sigmoid_attention.cli.arguments import Recipe
from sigmoid_attention.cli.output import print_json
from sigmoid_attention.studies.recipe import RecipeSetting, recommended, report, run, standings


def recipe(asked: Recipe) -> None:
    """Run or continue the study and print where the candidates stand."""
    setting = RecipeSetting(seeds=asked.seeds, learning_rates=asked.learning_rates)
    store = run(asked.out, setting, resume=asked.resume)
    found = standings(store, setting)
    if asked.json:
        chosen = {position: one.candidate for position, one in recommended(found).items()}
        print_json({"standings": found, "recommended": chosen})
        return
    print(report(found))
