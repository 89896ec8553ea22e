"""Lets PyPI's torchvision, a CUDA build, be imported beside a CPU build of torch.

Its compiled library does not load there. Its Python part then registers a fake implementation of
operators that no library has defined, and `import torchvision` ends with "operator
torchvision::nms does not exist". timm and transformers import torchvision, but use none of these
operators: it is enough that they are defined.

`make env` runs this file with the environment's Python:

    python tools/torchvision_cpu_mend.py

If torchvision needs the mend, the file copies itself beside the other packages, with a .pth file
that imports it at every start. It then waits for the first import of torchvision and loads nothing
before. If torchvision is fine or absent, it changes nothing and removes an earlier copy.
"""

import sys

# Every start of Python runs the lines outside of functions, so they import nothing else.

NAME = "torchvision_cpu_mend"
SYMPTOM = "operator torchvision::"


class _DefineOperators:
    """A finder of modules that finds none: it defines the operators before torchvision loads."""

    library = None  # torch forgets the operators as soon as this object is freed.

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import importlib.util

            import torch

            cuda_build = "+cu" in _version(importlib.util.find_spec(fullname))
            if cuda_build and torch.version.cuda is None:
                type(self).library = _defined(torch)
        return None


def _defined(torch):
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        # Another mend of the same kind may have come first.
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _version(torchvision) -> str:
    from pathlib import Path

    if torchvision is None or torchvision.origin is None:
        return ""
    return Path(torchvision.origin).with_name("version.py").read_text()


def _import_error() -> str:
    """What a new process says when it imports torchvision; empty if all is well."""
    import subprocess

    # -S leaves out .pth files, and with them an earlier mend; the path is handed over instead.
    code = f"import sys; sys.path[:] = {sys.path!r}; import torchvision"
    command = [sys.executable, "-S", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.stderr if ended.returncode else ""


def main() -> None:
    import importlib.util
    import shutil
    import sysconfig
    from pathlib import Path

    packages = Path(sysconfig.get_path("purelib"))
    hook, start = packages / f"{NAME}.py", packages / f"{NAME}.pth"
    if importlib.util.find_spec("torchvision") is None or SYMPTOM not in _import_error():
        hook.unlink(missing_ok=True)
        start.unlink(missing_ok=True)
        return
    shutil.copyfile(__file__, hook)
    start.write_text(f"import {NAME}\n")
    print("mended: this torchvision is built for CUDA, and torch for CPUs (tools/ says how)")


if __name__ == "__main__":
    main()
else:
    sys.meta_path.insert(0, _DefineOperators())
