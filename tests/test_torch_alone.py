"""The operator, the layers and flash-attn's names need only torch, and import few other modules."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import torch

from sigmoid_attention.attention.tracing import constant_when_traced
from sigmoid_attention.extras import LAB, lab_imports, require_lab

ROOT = Path(__file__).parents[1]
IMPORTED_AS = {"scikit-learn": "sklearn"}

BLOCKER = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def without(name, *place):
    return None if name.partition(".")[0] in BLOCKED else find(name, *place)

PathFinder.find_spec = without
"""


def normal(name):
    return re.sub("[-_.]+", "-", name).lower()


def of_torch():
    """torch's distribution and all that it requires, without extras."""
    packages, open_ = set(), ["torch"]
    while open_:
        name = open_.pop()
        if name in packages:
            continue
        packages.add(name)
        for requirement in (requires(name) or []) if present(name) else []:
            if "extra ==" not in requirement:
                open_.append(normal(re.match(r"[\w.-]+", requirement)[0]))
    return packages


def present(name):
    return any(normal(n) == name for names in packages_distributions().values() for n in names)


def blocked():
    """The names of modules that are installed here and that torch does not bring."""
    allowed = of_torch() | {"sigmoid-attention"}
    return sorted(
        module
        for module, names in packages_distributions().items()
        if not {normal(name) for name in names} & allowed
    )


def run(code, *, blocking=()):
    """Standard output of `code` in a process of its own, which cannot import `blocking`."""
    start = f"BLOCKED = set({list(blocking)!r})\n{BLOCKER}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORT_ALL = """
import importlib, json, pkgutil
import sigmoid_attention

refused = {}
for module in pkgutil.walk_packages(sigmoid_attention.__path__, "sigmoid_attention."):
    if ".cli" in module.name or module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        refused[module.name.removeprefix("sigmoid_attention.")] = str(error)

for block in BLOCKS:
    exec(block, {})
print(json.dumps(refused))
"""


def test_with_torch_alone_modules_import_or_say_what_to_type():
    """And the first blocks of the README run."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[:2]
    assert "sigmoid_attention.nn" in blocks[1]
    others = blocked()
    assert {"numpy", "scipy", "sklearn", "transformers", "rich"} <= set(others)
    assert not {"torch", "sympy", "typing_extensions"} & set(others)
    printed = run(f"BLOCKS = {blocks!r}\n{IMPORT_ALL}", blocking=others)
    refused = json.loads(printed.splitlines()[-1])
    kernels = {
        name
        for name in refused
        if re.match(r"attention\.impl\.(triton|experimental\.gluon)\.", name)
    }
    assert {refused.pop(name) for name in kernels} <= {"No module named 'triton'"}
    rooms = ("mixtures", "training", "lab", "studies", "report", "integrations", "diagnosis.")
    assert not [name for name in refused if not name.startswith(rooms)]
    assert {"mixtures.estimators", "mixtures.data", "training.trainer", "studies"} <= refused.keys()
    assert not {"mixtures", "mixtures.gates", "diagnosis", "diagnosis.rules"} & refused.keys()
    names = {name for name in refused if re.match(r"integrations\.(?!.*(timm|transf|conv))", name)}
    assert not names, "these are torch code under the names of other libraries"
    assert not {name: message for name, message in refused.items() if "pip install" not in message}


def test_one_missing_package_is_named(monkeypatch):
    for name, says in (("sklearn", "this needs sklearn of the lab extra: pip in"), ("cupy", "^No")):
        with pytest.raises(ModuleNotFoundError, match=says), lab_imports("this"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "sigmoid_attention.extras.find_spec",
        lambda name: None if name in ("rich", "tyro") else find(name),
    )
    with pytest.raises(ModuleNotFoundError, match=r"this needs rich, tyro of the lab extra"):
        require_lab("this")


def test_the_lab_extra_is_what_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [re.match(r"[\w-]+", name)[0] for name in project["optional-dependencies"]["lab"]]
    assert sorted(IMPORTED_AS.get(name, name) for name in declared) == sorted(LAB)


LOADED = """
import json, sys, torch

def foreign():
    global before
    new, before = set(sys.modules) - before, set(sys.modules)
    return sorted(name for name in new if not name.startswith("sigmoid_attention"))

before = set(sys.modules)
found = {}
from sigmoid_attention import sigmoid_attention
found["the operator"] = foreign()
from sigmoid_attention import nn
from sigmoid_attention.integrations import flash_attn
found["layers and flash-attn's names"] = foreign()
x = torch.randn(1, 2, 8, 16)
for impl in ("auto", "reference"):
    sigmoid_attention(x, x, x, is_causal=True, impl=impl)
    found[impl] = foreign()
layer = nn.Attention(16, 2, max_seq_len=8)
with torch.no_grad():
    layer(x[:, 0])
found["a layer's call"] = foreign()
print(json.dumps(found))
"""


def test_importing_and_calling_load_little_beside_torch():
    """Dynamo is what takes seconds; it brings 900 modules, sympy and torch.distributed with it."""
    for step, foreign in json.loads(run(LOADED)).items():
        assert len(foreign) < 12, f"{step} loads {foreign}"


def test_a_constant_is_marked_as_torch_marks_one():
    def ours():
        return 1

    def theirs():
        return 1

    marked = constant_when_traced(ours)
    assert marked is ours
    assert vars(ours) == vars(torch.compiler.assume_constant_result(theirs))
