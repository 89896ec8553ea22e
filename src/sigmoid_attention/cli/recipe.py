"""`sigmoid-attention recipe`: ranks biases and norms by held-out loss, and recommends a recipe."""

from sigmoid_attention.cli.output import print_json
from sigmoid_attention.cli.study_options import RecipeOptions
from sigmoid_attention.studies.recipe import RecipeSetting, recommended, report, run, standings


def recipe(options: RecipeOptions) -> None:
    """Run or continue the study and print the ranking of the candidates."""
    setting = RecipeSetting(seeds=options.seeds, learning_rates=options.learning_rates)
    store = run(options.out, setting, resume=options.resume)
    ranking = standings(store, setting)
    if options.json:
        chosen = {position: best.candidate for position, best in recommended(ranking).items()}
        print_json({"standings": ranking, "recommended": chosen})
        return
    print(report(ranking))
