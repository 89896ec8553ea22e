"""Which studies there are, and the question that each answers; nothing heavy is imported here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """A study: the command that runs it, its question, and the module that states its rule."""

    name: str
    question: str
    rule: str


STUDIES = (
    Study(
        name="compare",
        question="Should I switch to sigmoid attention, and what does it cost?",
        rule="sigmoid_attention.studies.compare.verdict",
    ),
    Study(
        name="recipe",
        question="Which position, norms and bias train a sigmoid decoder best?",
        rule="sigmoid_attention.studies.recipe",
    ),
    Study(
        name="routing",
        question="Does sigmoid routing train a mixture of experts better than softmax routing?",
        rule="sigmoid_attention.studies.routing.findings",
    ),
)
