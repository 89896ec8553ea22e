"""The packages of the lab extra, and the error message if one is missing.

The distribution is not on a package index, so the install command needs a clone of the repository.
"""

from importlib.util import find_spec
from types import TracebackType

# The import names of the packages.
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
    """Raise ``ModuleNotFoundError`` with the install command if a lab package is missing."""
    missing = missing_lab()
    if missing:
        raise _needed(who, missing)


class lab_imports:
    """A context for imports from the lab extra: a failed one raises with the install command.

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
