"""constraints/lock.txt names the version of every package that `make env` installs."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [
    Requirement(line)
    for line in (ROOT / "constraints/lock.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def locked_here():
    """The locked version of each package on this Python and platform."""
    return {
        canonicalize_name(line.name): next(iter(line.specifier)).version
        for line in LINES
        if line.marker is None or line.marker.evaluate()
    }


def test_every_line_names_one_version_and_no_address():
    for line in LINES:
        assert line.url is None
        assert [part.operator for part in line.specifier] == ["=="]


def test_installed_packages_have_the_locked_versions():
    installed = {
        canonicalize_name(package.name): package.version for package in metadata.distributions()
    }
    wrong = {
        name: (installed[name], version)
        for name, version in locked_here().items()
        # A build of torch may add a suffix, such as +cpu, to the locked version.
        if name in installed and installed[name].partition("+")[0] != version
    }
    assert wrong == {}, "run `make env`, or `make update` after a change of pyproject.toml"


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_every_requirement_is_locked_for_each_supported_python(minor):
    here = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
    extras = PROJECT["optional-dependencies"].values()
    requirements = [
        Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines
    ]
    for requirement in requirements:
        if requirement.name == PROJECT["name"]:
            continue
        locked = [
            next(iter(line.specifier)).version
            for line in LINES
            if canonicalize_name(line.name) == canonicalize_name(requirement.name)
            and (line.marker is None or line.marker.evaluate(here))
        ]
        assert len(locked) == 1, requirement
        assert SpecifierSet(str(requirement.specifier)).contains(locked[0], prereleases=True)


def test_the_readme_states_the_tested_versions():
    """The sentence that says what a release was tested with does not grow old."""
    text = (ROOT / "README.md").read_text()
    locked = locked_here()
    for name in ("torch", "transformers", "timm", "scikit-learn"):
        assert re.search(rf"{name} {re.escape(locked[name])}\b", text), name
