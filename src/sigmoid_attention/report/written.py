"""The texts that the trained models wrote, safe to show whatever bytes they hold."""

from html import escape

from sigmoid_attention.lab.rows import ARMS
from sigmoid_attention.report.measured import Measured
from sigmoid_attention.studies.compare.text import PROMPT, TEMPERATURE, TOP_P, WRITTEN


def texts(measured: Measured) -> str:
    """What each arm made of the same beginning, as HTML."""
    if not measured.arms(WRITTEN):
        return '<p class="absent">Texts of the models: not measured.</p>'
    return (
        '<p class="intro">Each model of the first seed continued the beginning of the held-out '
        f"text, shown in grey. Both arms drew with the same random numbers (temperature "
        f"{TEMPERATURE:g}, top-p {TOP_P:g}). Bytes that are no character are written as \\x and "
        "their number. One text is an impression and no measurement.</p>\n"
        f'<div class="texts">\n{"".join(_text(measured, arm) for arm in ARMS)}</div>'
    )


def _text(measured: Measured, arm: str) -> str:
    if not measured.values(WRITTEN, arm):
        return f'<p class="absent">The {arm} arm wrote nothing.</p>\n'
    prompt, written = (
        escape(visible(bytes(int(v.value) for v in measured.values(metric, arm))))
        for metric in (PROMPT, WRITTEN)
    )
    return (
        f'<figure class="text"><figcaption><span class="mark {arm}">{arm}</span></figcaption>\n'
        f'<pre><span class="prompt">{prompt}</span>{written}</pre></figure>\n'
    )


def visible(content: bytes) -> str:
    """The bytes as text without anything that a page or a terminal would obey or not show.

    Example:
        >>> visible(b"ab\\n\\x1b[2J\\xff\\xc3\\xa9")
        'ab\\n\\\\x1b[2J\\\\xffé'
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode()
        for c in content.decode("utf-8", errors="backslashreplace")
    )
