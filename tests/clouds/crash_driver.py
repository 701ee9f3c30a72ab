"""Lives the life of one instance on a local cloud and dies at a given point of it; run again, it goes on.

`python -m tests.clouds.crash_driver <directory> <first> <step>` tries every step-th point from the first one on and
prints how many points it tried and how many there are. A point is a moment before the cloud changes a file or a
process. CRASH_MOUNT in the environment says whether volumes are mounted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import structlog

from aggregates import effects
from engine.clouds.local import LocalCloud
from tests.clouds.local_setup import local_cloud, marked, processes_of, sweep
from tests.clouds.wishes import Wishes

_CHANGES = {
    "os.chmod",
    "os.chown",
    "os.kill",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "subprocess.Popen",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Step = tuple[Callable[[Wishes], effects.CloudEffect], str]

LIFE: tuple[Step, ...] = (
    (lambda w: w.port(), "key"),
    (lambda w: w.volume(), "key"),
    (lambda w: w.server(), "key"),
    (lambda w: w.attachment(), "key"),
    (lambda w: w.resize("medium"), "key"),
    (lambda w: w.confirm(), "key"),
    (lambda w: w.migrate(), "key"),
    (lambda w: w.revert(flavor_id="medium"), "key"),
    (lambda w: w.migrate(), "key"),
    (lambda w: w.confirm(), "key"),
    (lambda w: w.reboot(), "reboot"),
    (lambda w: w.stop(), "key"),
    (lambda w: w.start(), "key"),
    (lambda w: w.no_server(), "key"),
    (lambda w: w.no_port(), "key"),
    (lambda w: w.no_volume(), "key"),
)


class Points:
    """Counts the moments before changes, and kills the process at the one wished for."""

    def __init__(self, directory: Path, fatal: int | None) -> None:
        self.passed = 0
        self._directory = str(directory)
        self._fatal = fatal
        self._lock = threading.Lock()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_change(event, arguments):
            return
        with self._lock:
            self.passed += 1
            if self.passed == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_change(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            return str(arguments[0]).startswith(self._directory) and bool((arguments[2] or 0) & _WRITES)
        if event == "os.kill":
            return bool(arguments[0] != os.getpid() and arguments[1] != 0)
        return event in _CHANGES


class Life:
    """The steps done and the facts known, in a file: what an event store would hold."""

    def __init__(self, directory: Path, cloud: LocalCloud) -> None:
        self._file = directory / "life.json"
        self.wishes = Wishes(cloud, uuid5(UUID(int=0), str(directory)))
        self.done = 0
        if self._file.exists():
            known = json.loads(self._file.read_text())
            self.done, self.wishes.facts = known["done"], known["facts"]

    async def go_on(self) -> None:
        """Live the rest."""
        while self.done < len(LIFE):
            effect, key = LIFE[self.done]
            await self.wishes.pay(effect(self.wishes), key)
            self.done += 1
            fresh = self._file.with_suffix(".new")
            fresh.write_text(json.dumps({"done": self.done, "facts": self.wishes.facts}))
            fresh.replace(self._file)
            await self._check()

    async def _check(self) -> None:
        inventory = await self.wishes.cloud.contents()
        assert all(len(found) <= 1 for found in inventory.values()), inventory
        for server_id, server in inventory["servers"].items():
            assert server["name"] == self.wishes.name, server
            runs = server["volume_id"] is not None and server["status"] != "SHUTOFF"
            assert len(marked(server_id)) == int(runs), f"{server['status']}: {marked(server_id)}"


def live(directory: Path, fatal: int | None) -> int:
    """Live until dead or done; returns how many points were passed."""
    points = Points(directory / "cloud", fatal)

    async def run() -> None:
        cloud = local_cloud(directory / "cloud", mount=os.environ["CRASH_MOUNT"], grace=1.0)
        await cloud.start()
        await Life(directory, cloud).go_on()
        await cloud.close()
        left = {kind: found for kind, found in (await _inventory(directory)).items() if found}
        assert not left, left

    asyncio.run(run())
    assert cloud_is_clean(directory), list((directory / "cloud" / "claims").rglob("*"))
    return points.passed


async def _inventory(directory: Path) -> dict[str, Any]:
    cloud = local_cloud(directory / "cloud", mount="never")
    await cloud.start()
    found = await cloud.contents()
    await cloud.close()
    return found


def cloud_is_clean(directory: Path) -> bool:
    """No claim, process, mount or file of a resource is left."""
    claims = [path for path in (directory / "cloud" / "claims").rglob("*") if path.is_symlink()]
    files = [
        path
        for kind in ("ports", "volumes", "hosts")
        for path in (directory / "cloud" / kind).rglob("*")
        if not path.is_dir() or path.parent.name in {"servers", "volumes"}
    ]
    mounts = str(directory) in Path("/proc/mounts").read_text()
    return not (claims or files or mounts or processes_of(directory))


def forked(work: Callable[[], int]) -> tuple[int, int]:
    """Run in a child process; returns how it ended and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, str(work()).encode())
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it is, the child must end here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(said or 0)


def try_point(directory: Path, point: int) -> int | None:
    """Die there and go on; returns how many points there are if this one lies past the end."""
    ended, passed = forked(lambda: live(directory, point))
    if ended == 0:
        return passed
    if ended != -signal.SIGKILL:
        sys.exit(f"point {point}: ended with {ended} before it was killed")
    ended, _ = forked(lambda: live(directory, None))
    if ended != 0:
        sys.exit(f"point {point}: going on after the kill ended with {ended}")
    return None


def main(base: Path, first: int, step: int) -> None:
    """Try the points one after the other until one lies past the end of the life."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    tried, point, passed = 0, first, None
    while passed is None:
        directory = base / str(point)
        directory.mkdir(mode=0o711)
        try:
            passed = try_point(directory, point)
        finally:
            sweep(directory)
        tried, point = tried + 1, point + step
    print(json.dumps({"tried": tried - 1, "points": passed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
