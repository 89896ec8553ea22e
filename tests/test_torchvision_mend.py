"""timm and transformers can be imported in the environment that `make env` makes."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "tools" / "torchvision_cpu_mend.py"


@pytest.fixture
def mend(monkeypatch, tmp_path):
    """The file as a module, which would install into an empty folder."""
    spec = importlib.util.spec_from_file_location("mend", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    spec.loader.exec_module(module)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return module


def installed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_process_imports_torchvision_timm_and_transformers():
    code = "import timm, torchvision.transforms, transformers.models.llama.modeling_llama"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_it_installs_itself_only_against_its_own_symptom(mend, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mend, "_import_error", lambda: "ImportError: something else")
    mend.main()
    assert installed(tmp_path) == []
    monkeypatch.setattr(mend, "_import_error", lambda: "operator torchvision::nms does not exist")
    mend.main()
    assert installed(tmp_path) == ["torchvision_cpu_mend.pth", "torchvision_cpu_mend.py"]
    assert "CUDA" in capsys.readouterr().out


def test_it_removes_itself_where_torchvision_is_fine(mend, monkeypatch, tmp_path):
    for name in ("torchvision_cpu_mend.pth", "torchvision_cpu_mend.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(mend, "_import_error", lambda: "")
    mend.main()
    assert installed(tmp_path) == []


def test_it_loads_nothing_when_python_starts():
    code = f"import sys; before = set(sys.modules); exec(open({str(FILE)!r}).read(), {{}}); "
    code += "print(sorted(set(sys.modules) - before))"
    ended = subprocess.run(
        [sys.executable, "-Sc", code], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
