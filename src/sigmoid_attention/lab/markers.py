"""Pages of words of which a part is made: what stands between two markers, and only that."""

from pathlib import Path

from sigmoid_attention.training.files import reading


def around(document: Path, begin: str, end: str) -> tuple[str, str]:
    """What stands before and after the markers of a document, the markers included.

    Raises:
        ValueError: the document is not there, or has no such markers.
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
