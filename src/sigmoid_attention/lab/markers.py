"""Splits a Markdown file around its generated part, which lies between two markers."""

from pathlib import Path

from sigmoid_attention.training.files import reading


def split_at_markers(document: Path, begin: str, end: str) -> tuple[str, str]:
    """The text before and after the generated part of a document, each with its marker.

    Raises:
        ValueError: the document does not exist, or a marker is missing.
    """
    if not document.is_file():
        raise ValueError(f"docs: {document} is no document")
    with reading(document):
        text = document.read_text(encoding="utf-8")
    before, opening, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    if not (opening and closing):
        raise ValueError(f"docs: {document} does not have {begin} and, below it, {end}")
    return before + begin, end + after
