"""The packages that integrations are for: which versions are there, and whether they import.

They are imported in another process, because an import that fails may leave half of
itself behind, and one that crashes takes its process along.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

# What is imported of each, its oldest version, and what brings it.
_COMPANIONS = {
    "torchvision": ("torchvision", "", "timm"),
    "timm": ("timm", "1.0.23", "timm"),
    "transformers": ("transformers.models.llama.modeling_llama", "5.17", "transformers"),
    "accelerate": ("accelerate", "1.0", "transformers"),
}
# Lets a torchvision for CUDA import beside a torch for CPUs; `make env` installs it.
MEND = "torchvision_cpu_mend"
_SYMPTOM = "operator torchvision::"

_TRY = """
import importlib, json, sys
said = {}
for name, module in json.loads(sys.argv[1]).items():
    try:
        importlib.import_module(module)
        said[name] = ""
    except BaseException as error:
        while error.__cause__ is not None:
            error = error.__cause__
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Companion:
    """A package beside torch: its version if it is installed, and why it does not import."""

    name: str
    version: str | None = None
    problem: str = ""
    too_old: bool = False
    mended: bool = False

    @property
    def lacks_operators(self) -> bool:
        """Whether it fails as torchvision for CUDA does beside torch for CPUs."""
        return _SYMPTOM in self.problem

    @property
    def install(self) -> str:
        """What to type for it."""
        return f"pip install '.[{_COMPANIONS[self.name][2]}]' in a clone of sigmoid-attention"

    def said(self) -> str:
        """One line about it."""
        if self.version is None:
            return f"not installed; {self.install} brings it"
        if self.problem:
            return f"{self.version}, {self.problem}"
        return f"{self.version}{f', imports by the mend {MEND}' if self.mended else ''}"


@functools.cache
def examined() -> tuple[Companion, ...]:
    """Every companion, tried once in this process's lifetime."""
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
    """Why each of these modules does not import; nothing for those that do."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TRY, json.dumps(modules)],
        capture_output=True,
        text=True,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return dict.fromkeys(modules, f"the process that tried ended with {done.returncode}")
