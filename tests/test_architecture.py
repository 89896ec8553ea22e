"""Imports point one way, as docs/architecture.md says, and GPU code stands on no CPU code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import sigmoid_attention

PACKAGE = Path(sigmoid_attention.__file__).parent
# The packages that each package may import, besides itself and the files beside the packages.
ALLOWED = {
    "attention": set(),
    "mixtures": {"attention"},
    "nn": {"attention", "mixtures"},
    "theory": {"attention", "nn"},
    "integrations": {"attention", "nn"},
    "training": {"nn"},
    "diagnosis": {"attention", "integrations", "nn", "training"},
    "lab": {"training"},
    "studies": {"attention", "integrations", "lab", "mixtures", "nn", "theory", "training"},
    "report": {"lab", "studies", "training"},
}


def imported(file: Path) -> Iterator[str]:
    """The modules of this package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "sigmoid_attention."
        ):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_between_packages_point_one_way():
    wrong = []
    for package, allowed in ALLOWED.items():
        for file in (PACKAGE / package).rglob("*.py"):
            for module in imported(file):
                other = module.split(".")[1]
                if (PACKAGE / other).is_dir() and other not in allowed | {package}:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_gpu_code_imports_no_cpu_code():
    implementations = PACKAGE / "attention" / "impl"
    files = [*implementations.glob("triton/**/*.py"), *implementations.glob("experimental/**/*.py")]
    assert files
    wrong = [
        f"{file.name} imports {module}"
        for file in files
        for module in imported(file)
        if module.startswith("sigmoid_attention.attention.impl.cpu")
    ]
    assert wrong == []
