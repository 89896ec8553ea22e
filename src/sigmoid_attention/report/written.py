"""The texts that the trained models generated, with unsafe bytes escaped."""

from markupsafe import Markup

from sigmoid_attention.lab.rows import ARMS
from sigmoid_attention.report.comparison_values import ComparisonValues
from sigmoid_attention.report.html import from_template
from sigmoid_attention.studies.compare.text import PROMPT, TEMPERATURE, TOP_P, WRITTEN


def texts(measured: ComparisonValues) -> Markup:
    """The text that each arm generated after the same prompt, as HTML."""
    if not measured.arms(WRITTEN):
        return Markup('<p class="absent">Texts of the models: not measured.</p>')
    shown = [
        {
            "arm": arm,
            "prompt": _text(measured, PROMPT, arm),
            "written": _text(measured, WRITTEN, arm),
        }
        for arm in ARMS
    ]
    sampling = {"temperature": f"{TEMPERATURE:g}", "top_p": TOP_P}
    return from_template("texts.html", texts=shown, **sampling)


def _text(measured: ComparisonValues, metric: str, arm: str) -> str | None:
    values = measured.values(metric, arm)
    return visible(bytes(int(v.value) for v in values)) if values else None


def visible(content: bytes) -> str:
    """The bytes as text; control characters and invalid bytes become escape sequences.

    Example:
        >>> visible(b"ab\\n\\x1b[2J\\xff\\xc3\\xa9")
        'ab\\n\\\\x1b[2J\\\\xffé'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in content.decode("utf-8", errors="backslashreplace")
    )
