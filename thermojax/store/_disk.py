"""Files that are there as a whole or not at all."""

import errno
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is wrong is the disk, and not us: no room, a quota, a limit, a read-only or a broken device.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class DiskError(OSError):
    """A run that was going well could not be written; what it had kept before is intact."""


@contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into a `DiskError` of one sentence that names `folder`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskError) or error.errno not in _DISK:
            raise
        raise DiskError(f"{folder} could not be written ({os.strerror(error.errno)}).") from error


def write_file(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write `path` all of it or nothing; if `durable`, so that it outlives a power cut as well."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with open(draft, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        # The new name is kept by the folder.
        _force(path.parent)


def force(folder: Path) -> None:
    """Have everything in `folder` outlive a power cut, files before the folders that name them; nothing if there is none."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _force(Path(parent, name))
        _force(Path(parent))


def _force(path: Path) -> None:
    if os.name != "posix":
        # Elsewhere a folder cannot be opened, nor a file forced that is open for reading.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_draft(path: Path) -> bool:
    """Whether a file is what a killed writer leaves: a draft of ours, or one of Zarr's."""
    return (path.name.startswith(".") and path.name.endswith(".draft")) or path.suffix == ".partial"


def sweep_drafts(folder: Path) -> None:
    """Remove what a killed writer has left."""
    for path in [p for p in folder.rglob("*") if is_draft(p)]:
        path.unlink(missing_ok=True)


def slug(title: str) -> str:
    """A file name for a title."""
    plain = re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-.")
    return plain or f"{zlib.crc32(title.encode()):08x}"
