"""Places on disk, and writing that is all or nothing.

Every file the library writes goes to a temporary name in the same folder, is flushed to the disk and then renamed, so
that a process killed at any moment leaves only whole files behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from prunelimit.errors import PruneLimitError


def cache_folder() -> Path:
    """Return where checkpoints live: ``$PRUNELIMIT_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("PRUNELIMIT_CACHE") or platformdirs.user_cache_dir("prunelimit"))


def data_folder() -> Path:
    """Return where data sets live: ``$PRUNELIMIT_DATA``, or ``data`` in the cache folder."""
    return Path(os.environ.get("PRUNELIMIT_DATA") or cache_folder() / "data")


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents.

    Args:
        folder: The folder to create; it may exist already.

    Returns:
        The folder.

    Raises:
        PruneLimitError: If the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise PruneLimitError(
            f"folder={str(folder)!r} cannot be written ({error.__class__.__name__}): choose another with PRUNELIMIT_CACHE, "
            "PRUNELIMIT_DATA or PRUNELIMIT_RESULTS, or change its permissions."
        ) from error
    return folder


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path next to ``path``; on success flush it and rename it to ``path``.

    Args:
        path: The file to write.

    Yields:
        The temporary path. Whatever happens inside, ``path`` is either untouched or complete.
    """
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only the owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder next to ``path``; on success flush its files and rename it to ``path``.

    Args:
        path: The folder to write; an existing one is replaced.

    Yields:
        The temporary folder.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        temporary.chmod(0o755)
        if path.exists():
            stale = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(stale / "old")
            try:
                temporary.replace(path)
            except OSError:
                (stale / "old").replace(path)
                raise
            finally:
                shutil.rmtree(stale, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as readable JSON, atomically; a NaN is refused rather than written.

    Args:
        path: The file to write.
        value: Anything JSON can hold.
    """
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(data: object) -> str:
    """Return the SHA-256 digest of bytes or of a contiguous buffer, in hexadecimal."""
    return hashlib.sha256(memoryview(data)).hexdigest()  # type: ignore[arg-type]
