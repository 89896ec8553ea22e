"""Text to train on, what is held out of it, and where it came from."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sigmoid_attention.training.data.shakespeare import (
    ARCHIVE_SHA256,
    REQUIREMENT,
    shakespeare_texts,
)

HELDOUT_SHARE = 0.1
BY_NAME = f"whole files held out: the name's SHA-256 is in the lowest {HELDOUT_SHARE:.0%}"
BY_TAIL = f"the last {HELDOUT_SHARE:.0%} of the bytes held out"

STDLIB_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    # Tests are not typical source.
    *("test", "tests", "idle_test"),
    # Character tables, near copies of one another: a held-out one would be known from training.
    "encodings",
    # One generated string that would outweigh all other held-out files together.
    "pydoc_data",
}
STDLIB_MACHINE_SPECIFIC = "_sysconfigdata"


@dataclass(frozen=True)
class Document:
    """A named piece of text, as bytes: nothing here assumes an encoding."""

    name: str
    text: bytes


@dataclass(frozen=True)
class Provenance:
    """Where a corpus came from, in enough detail to tell whether two runs read the same text.

    `sha256` covers the names and the bytes of every document, training and held out; sizes are
    in bytes.
    """

    source: str
    version: str
    licence: str
    split: str
    files: int
    bytes: int
    heldout_files: int
    heldout_bytes: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, documents held out, and their provenance."""

    train: list[Document]
    heldout: list[Document]
    provenance: Provenance


def load_corpus(source: str | Path) -> Corpus:
    """Read the text called `source` and hold a tenth of it out.

    `"stdlib"` is the source code of the running Python's standard library (no download),
    `"shakespeare"` the works of Shakespeare (one download of 5 MB, then cached); anything else is
    the path of a file or of a folder, read as bytes. A folder is split by whole files and the
    choice hangs on the hash of each name, so it is the same in every run and moves little when
    files come and go; a single file is split at nine tenths.

    Raises:
        ValueError: `source` does not exist, cannot be read, or holds no text.
        OSError: the download failed.

    Example:
        >>> corpus = load_corpus("stdlib")
        >>> corpus.provenance.licence
        'PSF-2.0'
        >>> {document.name for document in corpus.train} & {d.name for d in corpus.heldout}
        set()
    """
    if source == "stdlib":
        version = f"{platform.python_implementation()} {platform.python_version()}"
        return _split(_stdlib_documents(), "stdlib", version, "PSF-2.0")
    if source == "shakespeare":
        documents = [Document(name, text) for name, text in shakespeare_texts().items()]
        version = f"{REQUIREMENT} sha256:{ARCHIVE_SHA256}"
        return _split(documents, "shakespeare", version, "CC-BY-2.5 (public domain works)")
    path = Path(source)
    if not (path.is_file() or path.is_dir()):
        raise ValueError(
            f"data must be 'stdlib', 'shakespeare', or the path of a file or folder; "
            f"there is none at {str(source)!r}"
        )
    if path.is_dir():
        documents = _read(path, _visible_files(path))
    else:
        documents = _read(path.parent, [path.name])
    return _split(documents, str(source), "as found", "not stated")


def _stdlib_documents() -> list[Document]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = [
        name
        for name in _visible_files(folder, left_out=STDLIB_LEFT_OUT)
        if name.endswith(".py") and not name.startswith(STDLIB_MACHINE_SPECIFIC)
    ]
    return _read(folder, names)


def _visible_files(folder: Path, left_out: Container[str] = ()) -> Iterator[str]:
    """Names, relative to `folder` and with '/', of all regular files; dot files are settings."""
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix()


def _read(folder: Path, names: Iterable[str]) -> list[Document]:
    documents = []
    for name in names:
        try:
            documents.append(Document(name, (folder / name).read_bytes()))
        except OSError as error:
            _refuse(error)
    return documents


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"data cannot be read: {error.filename} ({error.strerror})") from error


def _split(documents: list[Document], source: str, version: str, licence: str) -> Corpus:
    documents = sorted((d for d in documents if d.text), key=lambda document: document.name)
    if not documents:
        raise ValueError(f"data holds no text: {source!r} has no file with any bytes in it")
    if len(documents) == 1:
        (whole,) = documents
        cut = int(len(whole.text) * (1 - HELDOUT_SHARE))
        train = [Document(whole.name, whole.text[:cut])]
        heldout = [Document(f"{whole.name} (end)", whole.text[cut:])]
    else:
        ranked = sorted(documents, key=_rank)
        wanted = sum(_rank(document) < HELDOUT_SHARE for document in documents)
        # A folder of a few files may hash to none held out, or to nothing left to train on.
        names = {document.name for document in ranked[: min(max(wanted, 1), len(ranked) - 1)]}
        train = [document for document in documents if document.name not in names]
        heldout = [document for document in documents if document.name in names]
    provenance = Provenance(
        source=source,
        version=version,
        licence=licence,
        split=BY_TAIL if len(documents) == 1 else BY_NAME,
        files=len(documents),
        bytes=sum(len(document.text) for document in documents),
        heldout_files=len(heldout),
        heldout_bytes=sum(len(document.text) for document in heldout),
        sha256=_fingerprint(documents),
    )
    return Corpus(train, heldout, provenance)


def _rank(document: Document) -> float:
    """The hash of the name as a number in [0, 1)."""
    digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fingerprint(documents: list[Document]) -> str:
    total = hashlib.sha256()
    for document in documents:
        name = document.name.encode("utf-8", "surrogateescape")
        # Lengths first, so that no two different corpora run together into the same bytes.
        total.update(f"{len(name)} {len(document.text)} ".encode())
        total.update(name)
        total.update(document.text)
    return total.hexdigest()
