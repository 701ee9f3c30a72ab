"""An agent's part in a replication set: who follows whom here, and whether tenants may write.

A source that was told to be fenced, or whose agent was away for longer than the set allows, takes no writes, whatever
dies and starts again, until the engine says otherwise; a verb of a generation that is over is refused. What this does
not do: an agent that is cut off from the engine but at work cannot know that another became the source, and one that
was paused together with its database sees so only a moment after it goes on. So the engine cuts off the old source
from outside before it makes a new one; this is the second fence, for what comes back.

Why absence and not a lease. A lease that the engine renews would stop every source whenever the engine or the broker
is away, which is when nobody makes another source either. An agent that was at work all the time has heard whatever
it was told; only one that was not may have missed that it was replaced. The database alone may die as often as it
likes: its agent was there, and starts it again at once.

Each verb first notes durably what is to be, then brings it about, and leaves the closed state last: wherever it is cut
off, tenants' writes are refused, and asked again it goes on.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import msgspec
import structlog

from engine.guest.database import Database
from engine.guest.datastores.base import Datastore, DatastoreError
from engine.guest.desired import DesiredFile
from engine.guest.installation import sync_tree
from engine.guest.membership import Fence, Membership, MembershipFile, Role, account
from engine.messages import (
    AdmitReplicaArgs,
    AwaitPositionArgs,
    ConfigureSourceArgs,
    DismissReplicaArgs,
    FollowSourceArgs,
    GuestStatus,
    PromoteReplicaArgs,
    Repair,
    ReplicationArgs,
    ReplicationState,
    SeedReplicaArgs,
)

_log = structlog.get_logger()
_POLL = 0.02
_TRIM_EVERY = 10.0


class Replication:
    """The replication of one agent's database. Every method blocks, and takes its turn as those of `Database` do."""

    def __init__(
        self,
        instance_id: UUID,
        datastore: Datastore,
        database: Database,
        desired: DesiredFile,
        membership: MembershipFile,
        gibibyte: int,
    ) -> None:
        self._instance_id = instance_id
        self._account = account(instance_id)
        self._place = datastore.place
        self._driver = datastore.replication
        self._datastore = datastore
        self._database = database
        self._desired = desired
        self._membership = membership
        self._gibibyte = gibibyte
        self._open: bool | None = None  # whether tenants may write, as far as this process has seen to it
        self._next_trim = 0.0
        self._absence = 0.0  # seconds that are not yet settled

    # --- the source's side ------------------------------------------------------------------------------------

    def admit_replica(self, args: AdmitReplicaArgs) -> dict[str, Any]:
        """This replica may follow. Yields `position` and `port`."""
        known = self._writable_source(args)
        name = account(args.replica)
        self._membership.take(
            msgspec.structs.replace(known, role=Role.SOURCE, replicas={**known.replicas, name: args.address})
        )
        if not self._driver.can_be_followed(self._port):
            self._database.end()
            self._database.run()
        self._driver.admit(self._port, name, args.address, args.password)
        self._reconfigure()
        return self._facts()

    def dismiss_replica(self, args: DismissReplicaArgs) -> dict[str, Any]:
        """Nothing of this replica is left here."""
        known = self._joined(args)
        self._must_run()
        name = account(args.replica)
        left = {other: address for other, address in known.replicas.items() if other != name}
        self._membership.take(msgspec.structs.replace(known, replicas=left))
        self._reconfigure()
        self._driver.dismiss(self._port, name)
        return {}

    def configure_source(self, args: ConfigureSourceArgs) -> dict[str, Any]:
        """The source holds with its replicas like this from now on."""
        known = self._writable_source(args)
        self._check_policy(args)
        self._membership.take(
            msgspec.structs.replace(
                known, role=Role.SOURCE, synchronous=args.synchronous, absence_limit=args.absence_limit
            )
        )
        self._reconfigure()
        return {}

    def fence_source(self, args: ReplicationArgs) -> dict[str, Any]:
        """Tenants write no more, also after any restart. Yields the last `position`, None of a stopped database."""
        known = self._joined(args)
        if known.writable and self._desired.now.running and self._database.alive():
            try:
                self._driver.prepare_handover(self._port)
            except DatastoreError as error:
                _log.warning("handover_not_prepared", reason=str(error))
        role = Role.REPLICA if known.role is Role.REPLICA else Role.SOURCE
        self._membership.take(
            msgspec.structs.replace(known, role=role, fence=Fence.NONE if role is Role.REPLICA else Fence.TOLD)
        )
        self._close()
        return self._facts() if self._desired.now.running else {"position": None, "port": self._port}

    def unfence_source(self, args: ReplicationArgs) -> dict[str, Any]:
        """Tenants write again: this is still the source. Yields `position` and `port`."""
        known = self._joined(args)
        if known.role is Role.REPLICA:
            raise DatastoreError("not_source", "this is a replica: promote it")
        self._must_run()
        self._membership.take(msgspec.structs.replace(known, fence=Fence.NONE))
        self._apply_opening()
        return self._facts()

    # --- the replica's side -----------------------------------------------------------------------------------

    def seed_replica(self, args: SeedReplicaArgs) -> dict[str, Any]:
        """Installed with the source's data, running and following. Yields `position` and `port`."""
        self._database.mount.take()
        known = self._joined(args)
        if self._desired.now.prepared and known.role is not Role.REPLICA:
            raise DatastoreError(
                "data_present", "there is a database here already: have it follow the source, with repair `seed`"
            )
        self._database.configure(args.ram, args.overrides)
        self._desired.change(volume=args.volume_size * self._gibibyte, port=self._database.choose_port())
        if not self._desired.now.prepared:
            self._database.enter(GuestStatus.BUILDING)
            self._seed(args)
        return self._attach(args)

    def follow_source(self, args: FollowSourceArgs) -> dict[str, Any]:
        """Following this source. Yields `position`, `port` and `repaired`: `none`, `rewind` or `seed`."""
        known = self._joined(args)
        if args.source.instance_id == self._instance_id:
            raise DatastoreError("source_is_self", "an instance cannot follow itself")
        done = Repair.NONE
        if self._desired.now.installed:
            self._database.must_be_prepared()
            if known.role is not Role.REPLICA:
                self._membership.take(msgspec.structs.replace(known, role=Role.SOURCE, fence=Fence.TOLD))
                self._close()
            self._must_run()
            done = self._repair(args)
        elif args.repair is Repair.NONE:  # a repair was cut off
            raise DatastoreError("data_missing", "there are no whole data here: ask with repair `seed`")
        else:
            done = Repair.SEED
            self._seed(args)
        return {**self._attach(args), "repaired": done.value}

    def _repair(self, args: FollowSourceArgs) -> Repair:
        """Have the data be such that the source can be followed."""
        reason = self._driver.diverged(self._port, args.source, self._account, args.password)
        if reason is None:
            return Repair.NONE
        if args.repair is Repair.NONE:
            raise DatastoreError("diverged", f"{reason}; ask with repair `rewind` or `seed` to give that up")
        _log.warning("replica_diverged", reason=reason, repair=args.repair.value)
        # From here on nothing is started that is not whole: cut off, the data are fetched anew.
        self._desired.change(prepared=False, installed=False)
        if args.repair is Repair.SEED:
            self._seed(args)
            return Repair.SEED
        self._database.end()
        self._driver.rewind(args.source, self._account, args.password)
        self._become_replica(args)
        sync_tree(self._place.volume)
        self._desired.change(installed=True, prepared=True)
        return Repair.REWIND

    def _seed(self, args: SeedReplicaArgs | FollowSourceArgs) -> None:
        """The source's data in place of any that are here, on disk."""
        self._become_replica(args)
        source, user, password = args.source, self._account, args.password
        self._database.install(lambda data: self._driver.fetch(data, source, user, password))
        self._database.run()
        self._driver.load(self._port, source, user, password)
        sync_tree(self._place.volume)
        self._desired.change(installed=True, prepared=True)

    def _become_replica(self, args: SeedReplicaArgs | FollowSourceArgs) -> None:
        self._driver.remember(self._account, args.password)
        self._membership.take(
            Membership(
                role=Role.REPLICA,
                replication_set=args.replication_set,
                generation=args.generation,
                source=args.source,
                user=self._account,
            )
        )

    def _attach(self, args: SeedReplicaArgs | FollowSourceArgs) -> dict[str, Any]:
        self._become_replica(args)
        self._desired.change(running=True)
        self._database.write_configuration()
        self._database.run()
        self._driver.follow(self._port, args.source, self._account, args.password)
        self._tidy()
        self._open = False
        self._database.apply_read_only()
        self._database.enter(GuestStatus.HEALTHY)
        return self._facts()

    def await_position(self, args: AwaitPositionArgs) -> dict[str, Any]:
        """Applied up to this position. Yields `position`."""
        self._must_run()
        if args.position is not None:
            self._await(args.position, args.patience)
        return self._facts()

    def promote_replica(self, args: PromoteReplicaArgs) -> dict[str, Any]:
        """The source, and writable. Yields `position` and `port`."""
        known = self._joined(args)
        self._check_policy(args)
        if known.role is Role.NONE:
            raise DatastoreError("not_replica", "this instance follows nobody: there is nothing to promote")
        self._must_run()
        if known.role is Role.REPLICA and args.position is not None:
            self._await(args.position, args.patience)
        source = Membership(
            role=Role.SOURCE,
            replication_set=args.replication_set,
            generation=args.generation,
            replicas={} if known.role is Role.REPLICA else known.replicas,
            synchronous=args.synchronous,
            absence_limit=args.absence_limit,
        )
        self._stand_alone(source)
        return self._facts()

    def detach_replica(self, args: ReplicationArgs) -> dict[str, Any]:
        """In no replication set any more, and writable. Yields `position` and `port`."""
        known = self._joined(args)
        if known.replicas:
            raise DatastoreError("has_replicas", "replicas follow this instance: dismiss them first")
        self._must_run()
        self._stand_alone(Membership(replication_set=args.replication_set, generation=args.generation))
        return self._facts()

    def _stand_alone(self, then: Membership) -> None:
        """It follows nobody; `then` holds once that is so."""
        self._membership.take(msgspec.structs.replace(then, role=Role.SOURCE, fence=Fence.TOLD))
        self._driver.promote(self._port)
        if then.role is Role.NONE:
            self._driver.forget(self._port)
        self._membership.take(then)
        self._apply_opening()
        self._tidy()

    # --- supervision ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See to it that tenants may write if and only if they should."""
        if not self._desired.now.running or self._database.status is not GuestStatus.HEALTHY:
            return
        if time.monotonic() > self._next_trim:
            self._next_trim = time.monotonic() + _TRIM_EVERY
            self._driver.trim(self._port, self._database.settings())
        known = self._membership.now
        if known.role is not Role.SOURCE or self._open is known.writable:
            return
        if known.writable:
            self._apply_opening()
        else:
            self._close()

    def note_absence(self, seconds: float) -> None:
        """The agent was not at work for so long."""
        self._absence = max(self._absence, seconds)
        self.settle_absence()

    def settle_absence(self) -> None:
        """A source that was away for too long is fenced; said once the volume is there, which tells what it is."""
        seconds, known = self._absence, self._membership.now
        if not seconds or not self._database.mount.there:
            return
        if known.role is Role.SOURCE and known.writable and 0 < known.absence_limit < seconds:
            _log.error("source_was_absent", seconds=seconds, limit=known.absence_limit)
            self._membership.change(fence=Fence.ABSENT)
            if self._database.alive():
                self._close()
        self._absence = 0.0

    def state(self) -> ReplicationState | None:
        """For heartbeats; None outside of any set."""
        known, progress = self._membership.now, self._database.progress
        if known.role is Role.NONE:
            return None
        return ReplicationState(
            role=known.role.value,
            generation=known.generation,
            fenced=known.fence is not Fence.NONE,
            absent=known.fence is Fence.ABSENT,
            source=known.source.instance_id if known.source else None,
            link=progress.link if progress and known.source else None,
            received=progress.received if progress else None,
            lag_bytes=progress.lag_bytes if progress else None,
            lag_seconds=progress.lag_seconds if progress else None,
        )

    # --- steps ------------------------------------------------------------------------------------------------

    @property
    def _port(self) -> int:
        return self._desired.now.port

    def _facts(self) -> dict[str, Any]:
        return {"position": self._driver.progress(self._port).position, "port": self._port}

    def _joined(self, args: ReplicationArgs) -> Membership:
        """The membership under the generation that the engine names. Raises `DatastoreError` when that is too old."""
        known = self._membership.now
        if known.role is not Role.NONE and known.replication_set != args.replication_set:
            raise DatastoreError(
                "other_replication_set",
                f"this instance is in replication set {known.replication_set}, not {args.replication_set}: detach it "
                "there first",
            )
        if known.replication_set == args.replication_set and args.generation < known.generation:
            raise DatastoreError(
                "generation_stale",
                f"generation {args.generation} of the replication set is over, it is {known.generation} now: read the "
                "set again",
            )
        return msgspec.structs.replace(known, replication_set=args.replication_set, generation=args.generation)

    def _writable_source(self, args: ReplicationArgs) -> Membership:
        known = self._joined(args)
        if not known.writable:
            what = "a replica" if known.role is Role.REPLICA else "fenced"
            raise DatastoreError("not_source", f"this instance is {what}: ask the source of the set")
        self._must_run()
        return known

    def _check_policy(self, args: ConfigureSourceArgs) -> None:
        if args.synchronous and not self._driver.can_be_synchronous:
            raise DatastoreError("unsupported", "this datastore has no synchronous replication: leave it out")

    def _must_run(self) -> None:
        self._database.must_be_prepared()
        if not self._desired.now.running:
            raise DatastoreError("not_running", "the database is stopped: start it first")
        self._database.run()

    def _reconfigure(self) -> None:
        self._database.write_configuration()
        self._driver.configure(self._port, self._database.settings())

    def _close(self) -> None:
        """Tenants cannot write. A database that does not run reads so when it starts."""
        if not self._desired.now.running:
            return
        self._database.write_configuration()
        self._database.run()
        if not self._driver.close_tenants(self._port):
            self._database.end()
            self._database.run()
        self._database.apply_read_only()
        self._open = False

    def _apply_opening(self) -> None:
        self._reconfigure()
        self._driver.open_tenants(self._port)
        self._database.apply_read_only()
        self._open = True

    def _tidy(self) -> None:
        """Nothing is kept for replicas that are not admitted here."""
        for name in self._driver.accounts(self._port) - self._membership.now.replicas.keys():
            self._driver.dismiss(self._port, name)

    def _await(self, position: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self._driver.reached(self._port, position):
            if time.monotonic() > deadline:
                now = self._driver.progress(self._port).position
                raise DatastoreError(
                    "position_not_reached", f"at {now} after {patience:g} s, not yet at {position}", transient=True
                )
            time.sleep(_POLL)
