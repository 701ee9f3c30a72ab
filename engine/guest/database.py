"""The one database of an agent: what each verb makes of it, and what becomes of it when nobody asks.

Every method blocks; one thread at a time, which is the caller's to see to. Every verb ensures, so a verb cut off by the
agent's death is simply carried out again; a tenant's data is never touched by that once the installation was whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from engine.guest import process, volume
from engine.guest.datastores.base import Datastore, DatastoreError, Progress, Settings, check_programs
from engine.guest.desired import DesiredFile
from engine.guest.installation import choose_port, install, sync_tree
from engine.guest.membership import MembershipFile
from engine.guest.mount import Mount
from engine.messages import GrowArgs, GuestStatus, PrepareArgs, RebuildArgs, StartArgs

_log = structlog.get_logger()

START_TIMEOUT = 300.0  # recovery after a crash may read much of the log
_STARTS = 3  # a database that dies so often while it starts will not start
_PROBE_EVERY = 1.0
_SILENT_PROBES = 3  # so many unanswered ones in a row count as not answering
_LONGEST_PAUSE = 30.0
_STEADY = 60.0  # alive for so long, a database starts again at once when it dies


class Database:
    """A datastore, its process and what must be true of it. `on_status` is called in the thread that sees a change."""

    def __init__(
        self,
        datastore: Datastore,
        desired: DesiredFile,
        membership: MembershipFile,
        mount: Mount,
        gibibyte: int,
        on_status: Callable[[GuestStatus], None],
    ) -> None:
        self.mount = mount
        self._datastore = datastore
        self._place = datastore.place
        self._desired = desired
        self._membership = membership
        self._gibibyte = gibibyte
        self._on_status = on_status
        self._process = process.find(datastore.configuration())
        self._deaths = 0
        self._next_start = 0.0
        self._next_probe = 0.0
        self._unanswered = 0
        self._read_only: bool | None = None  # as the running database has it; unknown of one that was adopted
        self.status = self._first_status()
        self.progress: Progress | None = None
        self.use: volume.Use | None = None
        if self._process is not None:
            _log.info("database_adopted", pid=self._process.pid)

    @property
    def port(self) -> int | None:
        """The TCP port, once chosen."""
        return self._desired.now.port or None

    @property
    def read_only(self) -> bool:
        """Whether the volume is full and tenants may not write."""
        return self._desired.now.read_only

    # --- verbs ------------------------------------------------------------------------------------------------

    def prepare(self, args: PrepareArgs) -> dict[str, Any]:
        """Installed, configured, running, with these databases and users. Yields `port`."""
        try:
            return self._prepare(args)
        except DatastoreError:
            if not self._desired.now.prepared:
                self.enter(GuestStatus.FAILED)
            raise

    def _prepare(self, args: PrepareArgs) -> dict[str, Any]:
        self.mount.take()
        if not self._desired.now.prepared:
            self.enter(GuestStatus.BUILDING)
        self.configure(args.ram, args.overrides)
        self._desired.change(volume=args.volume_size * self._gibibyte, port=self.choose_port())
        if self._desired.now.installed:
            self.run()
        else:
            self._install_and_run()
        self._datastore.create(self._desired.now.port, args.databases, args.users, args.root_password)
        self._desired.change(prepared=True, running=True)
        self.enter(GuestStatus.HEALTHY)
        return {"port": self._desired.now.port}

    def rebuild(self, args: RebuildArgs) -> dict[str, Any]:
        """Running again, on a server made anew, with the data that lie on the volume."""
        self.mount.take()
        if not self._place.data.is_dir():
            raise DatastoreError(
                "data_missing",
                f"no data lie at {self._place.data}: see that the volume is mounted there, then ask again",
                transient=True,
            )
        self.configure(args.ram, args.overrides)
        self._desired.change(
            volume=args.volume_size * self._gibibyte, port=args.port, installed=True, prepared=True, running=True
        )
        self.run()
        self.enter(GuestStatus.HEALTHY)
        return {}

    def start(self, args: StartArgs) -> dict[str, Any]:
        """Running with the configuration for this memory."""
        self.must_be_prepared()
        self.mount.take()
        self.configure(args.ram, args.overrides)
        self._desired.change(running=True)
        self.run()
        self.enter(GuestStatus.HEALTHY)
        return {}

    def stop(self) -> dict[str, Any]:
        """Not running, and staying so."""
        self._desired.change(running=False)
        self.end()
        self.enter(GuestStatus.SHUTDOWN if self._desired.now.prepared else GuestStatus.NEW)
        return {}

    def restart(self) -> dict[str, Any]:
        """Another process than before, running."""
        self.must_be_prepared()
        self.mount.take()
        self._desired.change(running=True)
        self.end()
        self.run()
        self.enter(GuestStatus.HEALTHY)
        return {}

    def grow(self, args: GrowArgs) -> dict[str, Any]:
        """The volume has this size, and a database that was full takes writes again."""
        self.mount.take()
        size = args.volume_size * self._gibibyte
        has = volume.file_system_size(self._place.volume)
        if has is not None and has < size * 0.85:  # a file system keeps some of a volume for itself
            raise DatastoreError(
                "file_system_small",
                f"the file system at {self._place.volume} has {has} bytes of the volume's {size}: "
                "grow it, then ask again",
                transient=True,
            )
        self._desired.change(volume=size)
        self.watch_volume(self.measure())
        if self._read_only is not self._wants_read_only:
            self.apply_read_only()
        return {}

    # --- supervision ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See whether the database is as it should be, and take one step towards it."""
        desired = self._desired.now
        if not desired.prepared:
            return
        if not desired.running:
            self.end()
            self.enter(GuestStatus.SHUTDOWN)
        elif not self.mount.there:
            return  # the machine is up before its volume
        elif self._process is None or not self._process.alive():
            self._revive()
        elif time.monotonic() >= self._next_probe:
            self._probe()

    def _revive(self) -> None:
        """Say that it crashed when that is news, else start it, with ever longer pauses."""
        now = time.monotonic()
        if self._process is not None:
            self._deaths = 0 if time.time() - self._process.started > _STEADY else self._deaths + 1
            pause = min(_LONGEST_PAUSE, 2.0 ** (self._deaths - 2)) if self._deaths > 1 else 0.0
            _log.error(
                "database_crashed", pid=self._process.pid, pause=pause, log=process.last_words(self._place.log, 3)
            )
            self._process = None
            self._datastore.close()
            self._next_start = now + pause
            self.enter(GuestStatus.CRASHED)
        elif now >= self._next_start:
            self._next_start = now + _LONGEST_PAUSE  # of a start that fails before there is a process
            self._spawn()

    def _probe(self) -> None:
        self._next_probe = time.monotonic() + _PROBE_EVERY
        process.trim(self._place.log)
        if self._answers():
            self._unanswered = 0
            self.enter(GuestStatus.HEALTHY)
            if self._read_only is not self._wants_read_only:
                self.apply_read_only()
            return
        self._unanswered += 1
        if self._unanswered >= _SILENT_PROBES:
            self.enter(GuestStatus.STARTING)

    def measure(self) -> volume.Use:
        """How full the volume is now."""
        return volume.measure(self._place.volume, self._desired.now.volume)

    def watch_volume(self, use: volume.Use) -> None:
        """Make the database read-only when full, writable when there is room again."""
        if use.limit != self._desired.now.volume:
            return  # measured before the volume grew: it says nothing any more
        before, self.use = self.use, use
        if use.warning and not (before and before.warning):
            _log.warning("volume_nearly_full", used=use.used, size=use.size)
        wanted = use.should_be_read_only(self._desired.now.read_only)
        if wanted is self._desired.now.read_only:
            return
        _log.warning("volume_full" if wanted else "volume_has_room", used=use.used, size=use.size, read_only=wanted)
        self._desired.change(read_only=wanted)
        self.apply_read_only()

    def apply_read_only(self) -> None:
        """A database that does not answer is tried again after its next probe, or reads it when it starts."""
        self._read_only = None
        self.write_configuration()
        if self._process is None or not self._process.alive():
            return
        wanted = self._wants_read_only
        self._datastore.set_read_only(self._desired.now.port, wanted)
        self._read_only = wanted

    # --- steps, for the verbs of replication too --------------------------------------------------------------

    @property
    def _wants_read_only(self) -> bool:
        return self._desired.now.read_only or not self._membership.now.writable

    def _first_status(self) -> GuestStatus:
        desired = self._desired.now
        if not desired.prepared:
            return GuestStatus.BUILDING if desired.port else GuestStatus.NEW
        return GuestStatus.STARTING if desired.running else GuestStatus.SHUTDOWN

    def enter(self, status: GuestStatus) -> None:
        """Say how it is, when that is news."""
        if status is not self.status:
            self.status = status
            self._on_status(status)

    def must_be_prepared(self) -> None:
        """Raises `DatastoreError` where there is no database yet."""
        if not self._desired.now.prepared:
            raise DatastoreError("not_prepared", "there is no database here yet: ask for prepare first")

    def configure(self, ram: int, overrides: dict[str, str]) -> None:
        """Take on memory and parameters; a database that runs with others is ended."""
        unknown = sorted(overrides.keys() - self._datastore.parameters)
        if unknown:
            raise DatastoreError("parameter_unknown", f"these parameters may not be set: {', '.join(unknown)}")
        if (ram, overrides) == (self._desired.now.ram, self._desired.now.overrides):
            return
        # In this order: whoever dies in between ends the old one, with nothing noted that is not so.
        self.end()
        self._desired.change(ram=ram, overrides=overrides)

    def choose_port(self) -> int:
        """The port chosen before, unless nothing ever ran on it."""
        chosen = self._desired.now.port
        if chosen and (self._desired.now.prepared or self._process is not None):
            return chosen
        return choose_port(self._place.address, chosen or self._datastore.default_port)

    def _install_and_run(self) -> None:
        """A fresh data directory, on disk before it counts; the database starts while that goes on."""
        self.install(self._datastore.install)
        with ThreadPoolExecutor(1) as aside:
            on_disk = aside.submit(sync_tree, self._place.volume)
            self.run()
            on_disk.result()
        self._desired.change(installed=True)

    def install(self, make: Callable[[Path], None]) -> None:
        """A data directory that was made just now, in place of any other. Nothing runs."""
        check_programs(self._datastore.programs())
        self.end()
        install(self._place, make)

    def run(self) -> None:
        """A process that answers. Raises `DatastoreError` with the end of the database's log."""
        deadline = time.monotonic() + START_TIMEOUT
        for attempt in range(_STARTS):
            if self._process is None or not self._process.alive():
                self._spawn()
            while self._process is not None and self._process.alive():
                if self._answers():
                    self._deaths = self._unanswered = 0
                    return
                if time.monotonic() > deadline:
                    words = process.last_words(self._place.log)
                    raise DatastoreError(
                        "start_timeout", f"no answer after {START_TIMEOUT:g} s; its log ends:\n{words}", transient=True
                    )
                time.sleep(0.03)
            time.sleep(0.2 * 2**attempt)
        words = process.last_words(self._place.log)
        taken = "in use" in words
        raise DatastoreError(
            "start_failed", f"the database dies when it starts; its log ends:\n{words}", transient=taken
        )

    def _spawn(self) -> None:
        check_programs(self._datastore.programs())
        process.end_leftovers(self._datastore.configuration())
        self._datastore.close()
        self.write_configuration()
        self._read_only = self._wants_read_only
        self._process = process.start(self._datastore.command(), cwd=self._place.data, log=self._place.log)
        self._next_probe = 0.0
        _log.info("database_started", pid=self._process.pid)
        if self._desired.now.prepared:
            self.enter(GuestStatus.STARTING)

    def settings(self) -> Settings:
        """What the configuration is to be made from now."""
        desired = self._desired.now
        return Settings(
            ram=desired.ram,
            volume=desired.volume,
            port=desired.port,
            read_only=self._wants_read_only,
            overrides=desired.overrides,
            membership=self._membership.now,
        )

    def write_configuration(self) -> None:
        """Have the configuration say what holds now."""
        self._datastore.write_configuration(self.settings())

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.alive()

    def end(self) -> None:
        """No process. Raises `DatastoreError`."""
        if self._process is None:
            return
        self._datastore.close()
        self._process.end(self._datastore.stop_signals)
        _log.info("database_ended", pid=self._process.pid)
        self._process = None

    def _answers(self) -> bool:
        try:
            if not self._datastore.probe(self._desired.now.port):
                return False
            self.progress = self._datastore.replication.progress(self._desired.now.port)
        except DatastoreError as error:
            _log.debug("database_silent", reason=str(error))
            return False
        return True
