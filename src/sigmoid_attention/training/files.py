"""Files are written whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds the old content or the new, never a part.

    The bytes go to `<name>.tmp` in the same folder, reach the disk, and take the name in one step.
    Whatever was at `path` stays when the write fails, and the temporary file is removed.

    Raises:
        OSError: the folder cannot be written or the disk is full; says which file.

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
        failure = OSError(f"could not write {path} ({error.strerror}); nothing was overwritten")
        failure.errno = error.errno
        raise failure from error


def _remove_if_there(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # The folder itself is the problem, and the caller is about to say so.
        return
