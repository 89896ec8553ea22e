"""Writes files whole or not at all, and detects damaged files when they are read."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SEAL = "sha256"
# The lock file of the process that writes to a folder; see `lock`.
LOCK = ".lock"


class Damaged(ValueError):
    """The content of a file is not what was written; the message names the file."""


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds the old or the new content, never a part.

    The bytes are written to `<name>.tmp` in the same folder and synced; then the file is renamed.
    If the write fails, the old content stays, and the temporary file is removed.

    Raises:
        OSError: the folder cannot be written or the disk is full; names the file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_whole(folder / "note.txt", b"all of it")
        >>> [file.name for file in folder.iterdir()]
        ['note.txt']
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove_if_there(temporary)
        raise could_not_write(path, error) from error
    except BaseException:
        # An interrupt.
        _remove_if_there(temporary)
        raise


def refuse_occupied(out: Path, resume: bool) -> None:
    """Raise ``ValueError`` if `out` is a file, or is not empty and `resume` is False."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; nothing was overwritten")
    if not resume and holds_anything(out):
        raise ValueError(
            f"--out: {out} is not empty; nothing was overwritten "
            f"(continue it with --resume, or name another folder)"
        )


def holds_anything(out: Path) -> bool:
    """Whether the folder `out` exists and holds more than the lock file of this process."""
    return out.exists() and any(path.name != LOCK for path in out.iterdir())


def refuse_other_kinds(
    out: Path, *, files: Iterable[str] = (), folders: Iterable[str] = ()
) -> None:
    """Raise ``ValueError`` if a folder in `out` has the name of an output file, or a file that of
    an output folder. Called before the work, because the outputs are written after it.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp())
        >>> (out / "loss.svg").mkdir()
        >>> refuse_other_kinds(out, files=["loss.csv"], folders=["records"])
        >>> refuse_other_kinds(out, files=["loss.csv", "loss.svg"])
        Traceback (most recent call last):
        ...
        ValueError: ...loss.svg is a folder, but a file is to be written there; ...
    """
    for path in (out / (name + end) for name in files for end in ("", ".tmp")):
        if path.is_dir():
            raise ValueError(
                f"{path} is a folder, but a file is to be written there; nothing was overwritten"
            )
    for path in (out / name for name in folders):
        if path.exists() and not path.is_dir():
            raise ValueError(
                f"{path} is a file, but a folder is to be made there; nothing was overwritten"
            )


def read_whole(path: Path) -> bytes:
    """The content of a file; pipes, sockets and devices may be endless and are not read.

    Raises:
        Damaged: `path`, or the target of its link, is neither a file nor a folder.
        OSError: the file does not exist, is a folder, or cannot be read.

    Example:
        >>> read_whole(Path(os.devnull))
        Traceback (most recent call last):
        ...
        sigmoid_attention.training.files.Damaged: /dev/null is damaged (it is no file)
    """
    refuse_endless(path)
    return path.read_bytes()


def refuse_endless(path: Path) -> None:
    """Raise ``Damaged`` if `path` is a pipe, a socket or a device; see `read_whole`."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Damaged(f"{path} is damaged (it is no file)")


def could_not_write(path: Path, error: OSError) -> OSError:
    """The same failure, with a message that names the file."""
    failure = OSError(f"could not write {path} ({error.strerror}); nothing was overwritten")
    failure.errno = error.errno
    return failure


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all, with a checksum that `read_json` verifies."""
    write_whole(path, (json.dumps(sealed(content), indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote; an object without a checksum is not verified.

    Raises:
        Damaged: `path` is no file, or holds no JSON object, or its checksum does not match.
        OSError: the file does not exist or cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "setting.json")
        >>> write_json(path, {"steps": 3})
        >>> read_json(path)
        {'steps': 3}
        >>> _ = path.write_text(path.read_text().replace("3", "4", 1))
        >>> read_json(path)
        Traceback (most recent call last):
        ...
        sigmoid_attention.training.files.Damaged: ...setting.json is damaged (its checksum ...
    """
    data = read_whole(path)
    with reading(path):
        content = json.loads(data)
    if not isinstance(content, dict):
        raise Damaged(f"{path} is damaged (it holds no JSON object)")
    try:
        return unsealed(content)
    except ValueError as error:
        raise Damaged(f"{path} is damaged ({error})") from error


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`content` converted to JSON types, with a checksum that `unsealed` verifies."""
    # Through JSON and back: tuples become lists, so the checksum matches what is read later.
    content = json.loads(json.dumps(content))
    return content | {SEAL: _digest(content)}


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content without its checksum; ``ValueError`` if it does not match.

    Content without a checksum is returned unchanged.

    Example:
        >>> unsealed(sealed({"seconds": (0.5, 0.25)}))
        {'seconds': [0.5, 0.25]}
        >>> unsealed(sealed({"seconds": 0.5}) | {"seconds": 0.25})
        Traceback (most recent call last):
        ...
        ValueError: its checksum does not fit its content
    """
    # The checksum is the last entry, even if its key is damaged.
    name = SEAL if SEAL in content else next(reversed(content), "")
    rest = {key: value for key, value in content.items() if key != name}
    fits = bool(content) and content[name] == _digest(rest)
    if fits != (name == SEAL):
        raise ValueError("its checksum does not fit its content")
    return rest if fits else content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context in which errors of parsing the content of `path` become a `Damaged` that names it.

    Example:
        >>> with reading(Path("curve.json")):
        ...     {}["points"]
        Traceback (most recent call last):
        ...
        sigmoid_attention.training.files.Damaged: curve.json is damaged (KeyError: 'points')
    """
    try:
        yield
    except Damaged:
        raise
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(ArithmeticError, RuntimeError, MemoryError),
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Damaged(f"{path} is damaged ({reason})") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_if_there(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # The folder itself cannot be written, which the caller reports.
        return
