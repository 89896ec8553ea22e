"""Prepares docstrings for the site: formulas in LaTeX become MathML, roles become code.

The docstrings follow Google's style with Sphinx's `.. math::` and `:func:`. Browsers draw MathML
themselves, so the site needs no script for formulas.
"""

import re
import textwrap

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1 +.*|[ ]*(?=\n\1 )))*)", re.MULTILINE)


def _mathml(found: re.Match[str]) -> str:
    latex = " ".join(textwrap.dedent(found[2]).split())
    return f"\n{found[1]}{convert(latex, display='block')}\n"


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is None:
            return
        text = FORMULA.sub(_mathml, obj.docstring.value)
        text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text)
        # Only the plural is a section of its own for the parser.
        obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
