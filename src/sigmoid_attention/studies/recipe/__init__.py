"""The recipe study: which position, norms, bias and options train a sigmoid decoder best.

`candidates` names the models, `setting` the sizes and the seeds, `run` trains, `measure` tests, and
`standing` judges by the rule that it states.
"""

from sigmoid_attention.studies.recipe.candidates import CANDIDATES, Candidate
from sigmoid_attention.studies.recipe.run import run
from sigmoid_attention.studies.recipe.setting import SETTINGS, RecipeSetting
from sigmoid_attention.studies.recipe.standing import report, standings

__all__ = [
    "CANDIDATES",
    "SETTINGS",
    "Candidate",
    "RecipeSetting",
    "report",
    "run",
    "standings",
]
