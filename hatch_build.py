"""Ship the CPU kernel compiled, where the machine that builds the wheel has a C++ compiler.

The wheel then fits this platform and any Python 3: the kernel knows nothing of Python. Without a
compiler the wheel is pure, and the kernel is compiled at its first use, if there is one then.
"""

import importlib.util
import platform
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

ROOM = "sigmoid_attention/attention/impl/cpu"


class KernelHook(BuildHookInterface):
    """Compiles every vector path of this architecture into a wheel; leaves editable ones alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="sigmoid-attention-"))
        if version == "editable":
            return
        for file in self._compile():
            build_data["force_include"][str(file)] = f"{ROOM}/prebuilt/{file.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.scratch)

    def _compile(self) -> list[Path]:
        compiler = _module(Path(self.root, "src", ROOM, "compiler.py"))
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        for path in compiler.PATHS if x86 else ["generic"]:
            out = self.scratch / compiler.library_name(path, None)
            try:
                compiler.compile_library(path, compiler.find_compiler(), out)
            except compiler.NoCompiler:
                break
            except compiler.CannotBuild as problem:
                self.app.display_warning(f"the wheel lacks the CPU kernel for {path}: {problem}")
            else:
                compiler.seal(out)
        return sorted(self.scratch.iterdir())


def _module(file: Path) -> ModuleType:
    # By its path: importing the package would import torch, which no build environment has.
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform() -> str:
    # The plain tag: it was not checked that the libraries meet the rules of manylinux.
    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))
