"""As whom guests run, and whether that user can reach their directories."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from engine.clouds.port import FinalError


def unprivileged() -> tuple[int, int] | None:
    """User and group of guests: nobody under root; else None, for who runs the engine runs the guests."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return nobody.pw_uid, nobody.pw_gid


def check(directory: Path, user: tuple[int, int] | None) -> None:
    """Raises `FinalError` if the user cannot pass through to the directory."""
    if user is None:
        return
    if os.geteuid() != 0 and user != (os.geteuid(), os.getegid()):
        raise FinalError("invalid_argument", "only root can run guests as another user; leave run_as out")
    whole = directory.resolve()
    for place in reversed((whole, *whole.parents)):
        if not _passable(place.stat(), *user):
            raise FinalError(
                "state_directory_closed",
                f"guests run as user {user[0]}, who cannot pass through {place} on the way to {directory}; "
                f"say `chmod a+x {place}`, or choose a state directory elsewhere",
            )


def _passable(found: os.stat_result, uid: int, gid: int) -> bool:
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)
