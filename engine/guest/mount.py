"""The volume's mount as the agent sees it, who has no right to change it: it asks root's part, and looks.

A request is a file that a unit of systemd waits for; root's part removes it when it has done what it could. Nothing is
believed but the mount itself, so whoever dies on the way, the next to ask goes on. Where the volume is a directory, as
on the local cloud, it is always there and held by nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.guest.datastores.base import DatastoreError

REQUESTS = Path("/run/holdfast")  # the agent's: what root's part is asked for
RELEASE, MOUNT, HELD = "release", "mount", "held"

_POLL = 0.05
_RELEASE_TIMEOUT = 60.0  # seconds; whatever still is to be written goes to the disk meanwhile
_MOUNT_TIMEOUT = 60.0  # a file system that has grown is checked first


def answers(requests: Path) -> Path:
    """Where root's part says what it has to: beside the requests, but nobody else can put anything there."""
    return requests.with_name(f"{requests.name}-volume")


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """`requests`: where root's part is asked; None: the volume is a directory, and nothing is mounted."""

    volume: Path
    requests: Path | None = None

    @property
    def there(self) -> bool:
        """Whether the volume's files can be used."""
        return self.requests is None or self.volume.is_mount()

    def let_go(self, timeout: float = _RELEASE_TIMEOUT) -> None:
        """It is mounted no more, and all of it is on the disk. Raises `DatastoreError` that names who holds it."""
        if self.requests is None or not self.there:
            return
        self._ask(RELEASE, lambda: not self.there, timeout)
        if self.there:
            held = answers(self.requests) / HELD
            why = held.read_text().strip() if held.exists() else "root's part, holdfast-release.service, did nothing"
            raise DatastoreError(
                "volume_held",
                f"the volume at {self.volume} is still mounted: {why}",
                transient=True,
            )

    def take(self, timeout: float = _MOUNT_TIMEOUT) -> None:
        """It is mounted. Raises `DatastoreError` while it is not there."""
        if self.requests is None:
            return
        (self.requests / RELEASE).unlink(missing_ok=True)  # of whoever died before it was heard
        if self.there:
            return
        self._ask(MOUNT, lambda: self.there, timeout)
        if not self.there:
            raise DatastoreError(
                "volume_away",
                f"no volume is mounted at {self.volume}: attach it, and see what holdfast-volume.service says",
                transient=True,
            )

    def _ask(self, what: str, done: Callable[[], bool], timeout: float) -> None:
        """Until it is so, or root's part has done what it could, or the time is over."""
        if self.requests is None:
            return
        request = self.requests / what
        request.touch()
        deadline = time.monotonic() + timeout
        while not done() and time.monotonic() < deadline:
            # A disk that is just being attached is mounted without being asked for.
            if what == RELEASE and not request.exists():
                return
            time.sleep(_POLL)
        request.unlink(missing_ok=True)
