"""Prints text on terminals, with control characters escaped.

File names and the output of models are not trusted. An escape sequence in them could recolour,
overwrite or retitle a terminal, and rich would read square brackets as markup.
"""

import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# These change the direction of the text; the rest of their category joins letters and emoji.
TURNS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


def plain(text: str, keep: str = "") -> str:
    """`text` with every control character escaped, except those in `keep`.

    Example:
        >>> plain("runs/\\x1b[31mred\\n")
        'runs/\\\\x1b[31mred\\\\n'
        >>> plain("two\\nlines", keep="\\n")
        'two\\nlines'
    """
    return "".join(
        character if character in keep or not _steers(character) else _written_out(character)
        for character in text
    )


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in TURNS


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def tell(text: str) -> None:
    """Print lines to standard output, escaped by `plain`."""
    print(plain(text, keep="\n"), flush=True)


def warn(sentence: str) -> None:
    """Print one line to standard error, escaped by `plain`."""
    # A closed standard error, or a full disk behind it, must not stop a run.
    with suppress(OSError):
        print(plain(" ".join(sentence.split())), file=sys.stderr, flush=True)


def terminal(*, errors: bool = False, quiet: bool = False) -> "Console":
    """A console of rich that prints text unchanged: no markup, no emoji codes, no highlighting.

    Example:
        >>> terminal().print("a[/b] [red] :smile:")
        a[/b] [red] :smile:
    """
    # Imported here, because some commands run without the lab extra.
    from rich.console import Console

    return Console(stderr=errors, quiet=quiet, markup=False, highlight=False, emoji=False)


def sentence(error: BaseException) -> str:
    """An error and its notes as one line that names the file, if there is one.

    Example:
        >>> sentence(PermissionError(13, "Permission denied", "runs/setting.json"))
        'Permission denied (runs/setting.json)'
    """
    parts = [str(error), *getattr(error, "__notes__", [])]
    if isinstance(error, OSError) and error.strerror:
        named = f" ({error.filename})" if error.filename else ""
        parts[0] = f"{error.strerror}{named}"
    # Libraries wrap their messages over several lines; here they are joined.
    return " ".join(" ".join(parts).split())


def in_sentences(main: Callable[[], None]) -> int:
    """Run a small command; return its exit code: 2, after printing a sentence, for user errors.

    Example:
        >>> in_sentences(lambda: None)
        0
    """
    try:
        main()
    except (ValueError, OSError) as error:
        warn(sentence(error))
        return 2
    except ImportError as error:
        warn(f"{sentence(error)} (sigmoid-attention doctor says what to type)")
        return 2
    return 0
