"""What the lab extra brings, and one sentence for where it is missing.

The distribution is on no index of packages: install lines are those of a clone.
"""

from importlib.util import find_spec
from types import TracebackType

# By the names that they are imported by.
LAB = (
    "jinja2",
    "matplotlib",
    "numpy",
    "pyarrow",
    "rich",
    "safetensors",
    "sklearn",
    "scipy",
    "tokenizers",
    "tyro",
)
INSTALL_LAB = "pip install '.[lab]' in a clone of sigmoid-attention"


def missing_lab() -> list[str]:
    """The packages of the lab extra that are not installed."""
    return [name for name in LAB if find_spec(name) is None]


def require_lab(who: str) -> None:
    """Raise ``ModuleNotFoundError``, with what to type, unless the whole lab extra is there."""
    missing = missing_lab()
    if missing:
        raise _needed(who, missing)


class lab_imports:
    """Around imports from the lab extra: where one fails, it says what to type.

    Example:
        >>> with lab_imports("this example"):
        ...     import numpy
    """

    def __init__(self, who: str) -> None:
        self._who = who

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ModuleNotFoundError) and error.name in LAB:
            raise _needed(self._who, [error.name]) from error


def _needed(who: str, missing: list[str]) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{who} needs {', '.join(missing)} of the lab extra: {INSTALL_LAB}", name=missing[0]
    )
