"""Prepares docstrings for the site: formulas in LaTeX become MathML, roles become code.

The docstrings follow Google's style with Sphinx's `.. math::` and `:func:`. Browsers draw MathML
themselves, so the site needs no script for formulas. Sessions (`>>>`) become blocks of code.
"""

import re
import textwrap

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n(?:\1 +.*|[ ]*(?=\n\1 )))*)", re.MULTILINE)
# Those within a section are indented, and the parser finds them itself.
SESSION = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


def _mathml(found: re.Match[str]) -> str:
    latex = " ".join(textwrap.dedent(found[2]).split())
    return f"\n{found[1]}{convert(latex, display='block')}\n"


def _prepared(text: str) -> str:
    text = FORMULA.sub(_mathml, text)
    text = SESSION.sub("```pycon\n\\g<0>\n```", text)
    text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text)
    # Only the plural is a section of its own for the parser.
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        self._prepare(pkg)

    def _prepare(self, found: griffe.Object) -> None:
        if found.docstring is not None:
            found.docstring.value = _prepared(found.docstring.value)
        for member in found.members.values():
            if not member.is_alias:
                self._prepare(member)
