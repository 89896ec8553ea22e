"""The table of architectures in docs/integrations.md, from the list of the checks that tests run.

    python -m tools.architecture_table

The table and the tests are made from the same list, so that the table holds only what is tested.
"""

import inspect
from collections.abc import Callable

from tests.support.transformers import checks
from tests.support.transformers.architectures import ARCHITECTURES, Architecture

# For each column: its head, the check, and whether the check applies to an architecture.
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
    """A row for each architecture; a dash where a check does not apply."""
    heads = ["architecture", "attention modules", *(head for head, _, _ in COLUMNS)]
    rows = [heads, ["---"] * len(heads)]
    for name, architecture in ARCHITECTURES.items():
        marks = ["yes" if fits(architecture) else "–" for _, _, fits in COLUMNS]
        rows.append([name, str(architecture.modules), *marks])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def legend() -> str:
    """What each column means: the docstring of its check."""
    sentences = ((head, inspect.getdoc(check) or "") for head, check, _ in COLUMNS)
    return "\n".join(f"- {head}: {sentence}" for head, sentence in sentences)


if __name__ == "__main__":
    print(f"{markdown()}\n\n{legend()}")
