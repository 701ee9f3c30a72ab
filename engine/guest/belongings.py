"""What must outlive the server: the agent works on the machine's own disk, and leaves on the volume what is needed.

So it holds nothing of the volume while that is let go of. A server made anew from another image finds its key there,
which it could not get a second time, and all else as the last verb left it.
"""

from __future__ import annotations

from pathlib import Path

from engine.guest.desired import sync_directory, write_durably

# The key comes last: where it is, all is.
_CARRIED = ("admin.password", "broker-ca.pem", "desired.json", "journal.jsonl", "enrolled.json", "agent.nk")


def take_over(kept: Path, directory: Path) -> None:
    """A server that has no key yet takes what the one before it has left on the volume."""
    if not (directory / _CARRIED[-1]).exists():
        _copy(kept, directory)


def leave(directory: Path, kept: Path) -> None:
    """On disk when this returns."""
    kept.mkdir(mode=0o700, exist_ok=True)
    sync_directory(kept.parent)
    _copy(directory, kept)


def _copy(source: Path, target: Path) -> None:
    for name in _CARRIED:
        if (source / name).exists():
            content = (source / name).read_bytes()
            if not (target / name).exists() or (target / name).read_bytes() != content:
                write_durably(target / name, content)
