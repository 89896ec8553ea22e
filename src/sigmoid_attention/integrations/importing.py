"""The error message of an integration whose package does not import."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def remedy(package: str, tested: str, error: BaseException) -> str:
    """One sentence with the remedy: install the package, repair it, or use another version.

    Args:
        package: "transformers" or "timm"; the extra has the same name.
        tested: the required and the tested versions, in words.
        error: the exception of the import.
    """
    needs = f"sigmoid_attention.integrations.{package} needs {package} {tested}"
    if find_spec(package) is None:
        return f"{needs}: pip install '.[{package}]' in a clone of sigmoid-attention"
    try:
        installed = f"{package} {version(package)}"
    except PackageNotFoundError:
        installed = package
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    # A name that the package itself lacks points to another version; other errors to the machine.
    if str(getattr(cause, "name", "")).partition(".")[0] == package:
        return f"{needs}; {installed} lacks what it uses: {cause}"
    return (
        f"{needs}; {installed} does not import here: {cause}; "
        f"`sigmoid-attention doctor` gives the remedy"
    )
