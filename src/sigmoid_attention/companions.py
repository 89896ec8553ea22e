"""Find the installed packages that the integrations need, and whether they import.

The imports run in another process, because a failed import may leave partial state and a crash
would end this process.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

# For each package: the module to import, the oldest supported version, and this project's extra.
_COMPANIONS = {
    "torchvision": ("torchvision", "", "timm"),
    "timm": ("timm", "1.0.23", "timm"),
    "transformers": ("transformers.models.llama.modeling_llama", "5.17", "transformers"),
    "accelerate": ("accelerate", "1.0", "transformers"),
}
# Makes a torchvision for CUDA importable with a torch for CPUs; `make env` installs it.
MEND = "torchvision_cpu_mend"
_SYMPTOM = "operator torchvision::"

_TRY = """
import importlib, json, sys
errors = {}
for name, module in json.loads(sys.argv[1]).items():
    try:
        importlib.import_module(module)
        errors[name] = ""
    except BaseException as error:
        while error.__cause__ is not None:
            error = error.__cause__
        errors[name] = f"{type(error).__name__}: {error}"
print(json.dumps(errors))
"""


@dataclass(frozen=True)
class Companion:
    """One package: its version if it is installed, and the error of its import."""

    name: str
    version: str | None = None
    problem: str = ""
    too_old: bool = False
    mended: bool = False

    @property
    def lacks_operators(self) -> bool:
        """Whether the import failed because of a torchvision for CUDA with a torch for CPUs."""
        return _SYMPTOM in self.problem

    @property
    def install(self) -> str:
        """The command that installs the package."""
        return f"pip install '.[{_COMPANIONS[self.name][2]}]' in a clone of sigmoid-attention"

    def describe(self) -> str:
        """One line with version and problem."""
        if self.version is None:
            return f"not installed; {self.install} brings it"
        if self.problem:
            return f"{self.version}, {self.problem}"
        return f"{self.version}{f', imports by the mend {MEND}' if self.mended else ''}"


@functools.cache
def examined() -> tuple[Companion, ...]:
    """All companions; the imports run once per process."""
    versions = {name: _version(name) for name in _COMPANIONS}
    there = {name: _COMPANIONS[name][0] for name, found in versions.items() if found}
    problems = _problems(there)
    answer = []
    for name, found in versions.items():
        oldest = _COMPANIONS[name][1]
        if found and oldest and _numbers(found) < _numbers(oldest):
            answer.append(Companion(name, found, f"older than {oldest}", too_old=True))
            continue
        problem = problems.get(name, "")
        mended = name == "torchvision" and importlib.util.find_spec(MEND) is not None
        answer.append(
            Companion(name, found, f"does not import: {problem}" if problem else "", mended=mended)
        )
    return tuple(answer)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


def _problems(modules: dict[str, str]) -> dict[str, str]:
    """The import error of each module, "" for a module that imports."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TRY, json.dumps(modules)],
        capture_output=True,
        text=True,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return dict.fromkeys(modules, f"the process that tried ended with {done.returncode}")
