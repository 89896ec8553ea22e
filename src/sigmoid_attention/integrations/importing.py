"""What to do where a package that an integration is for does not import."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def remedy(package: str, tested: str, error: BaseException) -> str:
    """One sentence: install the package, look at what keeps it from importing, or take another.

    Args:
        package: "transformers" or "timm", which is the name of the extra as well.
        tested: the versions that it needs, and those that it is tested with.
        error: what the import said.
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
    # A name that is not in the package itself is another version's; the rest is this machine's.
    if str(getattr(cause, "name", "")).partition(".")[0] == package:
        return f"{needs}; {installed} lacks what it uses: {cause}"
    return (
        f"{needs}; {installed} does not import here: {cause}; "
        f"what to do about it says: sigmoid-attention doctor"
    )
