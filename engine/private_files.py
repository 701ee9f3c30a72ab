"""Files for their owner alone, written in one step and for good.

Guarantees that after a crash or a power cut a file is the old or the new one, never half of it, and that a name made
exclusively is made once. It may leave a `.*.new` file behind, which nobody reads.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write the file, or write it anew. Of several at one moment, one wins."""
    _fresh(path, content).replace(path)
    sync_directory(path.parent)


def make_file(path: Path, content: bytes) -> bool:
    """Write the file unless it is there; whether we did."""
    fresh = _fresh(path, content)
    try:
        path.hardlink_to(fresh)
    except FileExistsError:
        return False
    finally:
        fresh.unlink()
    sync_directory(path.parent)
    return True


def delete_file(path: Path) -> None:
    """Delete the file, if it is there."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make what was renamed or deleted in it outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fresh(path: Path, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)  # mode 0600
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    return fresh
