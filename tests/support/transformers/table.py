"""The table of architectures in docs/integrations.md, from the tests that are run.

python -m tests.support.transformers.table
"""

import inspect
from collections.abc import Callable

from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES, Architecture

# Column by column: its head, the check, and whether it makes sense for an architecture.
COLUMNS: list[tuple[str, Callable[..., None], Callable[[Architecture], bool]]] = [
    ("reached", checks.reached, lambda _: True),
    ("output", checks.definition, lambda _: True),
    ("gradients", checks.gradients, lambda _: True),
    ("dynamic cache", checks.dynamic_cache, lambda a: a.decodes),
    ("static cache", checks.static_cache, lambda a: a.decodes),
    ("padding", checks.padding, lambda a: a.pads),
    ("one graph", checks.compiled, lambda _: True),
    ("reload", checks.reloaded, lambda _: True),
    ("linear bias", checks.linear_bias, lambda _: True),
]


def markdown() -> str:
    """A row for each architecture; a dash where a check has nothing to look at."""
    heads = ["architecture", "attention modules", *(head for head, _, _ in COLUMNS)]
    rows = [heads, ["---"] * len(heads)]
    for name, architecture in ARCHITECTURES.items():
        marks = ["yes" if fits(architecture) else "–" for _, _, fits in COLUMNS]
        rows.append([name, str(architecture.modules), *marks])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def legend() -> str:
    """What each column says, in the words of its check."""
    sentences = ((head, inspect.getdoc(check) or "") for head, check, _ in COLUMNS)
    return "\n".join(f"- {head}: {sentence}" for head, sentence in sentences)


if __name__ == "__main__":
    print(f"{markdown()}\n\n{legend()}")
