"""The histories that must be on file: each command of an instance with each way in which it can end, and a few more.

What can fail, park or be deleted over follows from the chart, so a new command or a new point of no return asks for
new histories by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import msgspec

from aggregates.base import Context, Event, Failure, Obligation
from aggregates.catalogue import Catalogue
from aggregates.commands import (
    CreateInstance,
    DeleteInstance,
    Rebuild,
    ReleaseBackup,
    ReleaseQuota,
    ReserveBackup,
    ReserveQuota,
    SetQuota,
    StopInstance,
    UpdateAccess,
)
from aggregates.effects import Access, Database, User
from aggregates.health import Health, HealthStatus
from aggregates.instance import Instance
from aggregates.obligations import quota_id
from aggregates.observation import Look, adopt, disown, note, note_removed, note_surplus
from aggregates.quota import Quota
from aggregates.record import CommandAccepted, CommandRejected, record_id
from aggregates.resources import Drift, DriftKind, Resource, ResourceKind
from tests.support.given import (
    BARE,
    CATALOGUE,
    EXAMPLES,
    MANAGED,
    NOON,
    REGIONS,
    YIELDS,
    context,
    intervention,
    started,
)

ID = uuid5(NAMESPACE_URL, "holdfast:golden")
STEP = timedelta(seconds=1, microseconds=500)

CREATE = CreateInstance(
    name="orders — «EU»",
    flavor="small",
    datastore="postgresql",
    datastore_version="16",
    volume_size=1,
    volume_type="local",
    databases=(Database(name="shop", character_set="UTF8", collate="C"), Database(name="stock")),
    users=(User(name="ann", password_ref="secret-1", host="10.%", databases=("shop", "stock")),),
    root_password_ref="secret-2",
    overrides={"work_mem": "8MB"},
    availability_zone="az-1",
)


class Teller:
    """Has things happen to one instance, each a little later than the one before."""

    def __init__(self, name: str, *, catalogue: Catalogue = CATALOGUE, **changes: Any) -> None:
        self._at = NOON
        self._commands = 0
        self.catalogue = catalogue
        given = {name: getattr(CREATE, name) for name in CREATE.__struct_fields__}
        self.instance = Instance.create(ID, CreateInstance(**{**given, **changes}), self._context())
        if name == "create_instance":
            return
        self.settle()
        if name == "start_instance":
            self.command(StopInstance())
            self.settle()
        self.command(EXAMPLES[name])

    def _context(self) -> Context:
        self._at += STEP
        self._commands += 1
        return context(uuid5(ID, str(self._commands)), at=self._at, catalogue=self.catalogue)

    def _now(self) -> Any:
        self._at += STEP
        return self._at

    def command(self, command: Any) -> None:
        """It decides the command."""
        self.instance.execute(command, self._context())

    def pay(self) -> None:
        """What is owed succeeds."""
        owed = self.instance.owes()
        assert owed is not None
        self.instance.take(owed.then, at=self._now(), **owed.facts, **YIELDS.get(owed.then, {}))

    def settle(self) -> None:
        """All that is owed succeeds."""
        while self.instance.owes() is not None:
            self.pay()

    def until(self, state: str) -> None:
        """All that is owed before the state succeeds."""
        while self.instance.state != state:
            self.pay()

    def intervene(self, name: str, **arguments: Any) -> None:
        """Somebody sends a command about the operation that runs."""
        self.command(intervention(self.instance, name, **arguments))

    def fail(self, code: str = "cloud_error", message: str = "No valid host was found.") -> None:
        """What is owed fails for good."""
        failure = Failure(code=code, message=message, state=self.instance.state)
        self.instance.take("failed", at=self._now(), failure=failure)

    def note(self, event: str, **facts: Any) -> None:
        """A fact beside the state."""
        self.instance.note(event, at=self._now(), **facts)

    def see(self, note: Callable[..., None], seen: Resource | Look) -> None:
        """Something seen in the cloud is noted."""
        note(self.instance, seen, at=self._now())

    def attempt(self, number: int) -> None:
        """What is owed fails in a way that may pass."""
        owed = self.instance.owes()
        assert owed is not None
        facts = {"attempt": number, "code": "timeout", "message": "no answer within 30 s", "retry_at": self._at + STEP}
        self.note("AttemptFailed", effect=owed.effect.type_name, **facts)

    def doubt(self) -> None:
        """The last try fails, and a call may yet be carried out."""
        owed = self.instance.owes()
        assert owed is not None
        facts = {"code": "timeout", "message": "no answer within 30 s", "due_at": self._at + 60 * STEP}
        self.note("LastLookDue", effect=owed.effect.type_name, **facts)

    def park(self) -> None:
        """What is owed cannot be paid."""
        owed = self.instance.owes()
        assert owed is not None
        facts = {"code": "cloud_error", "message": "Volume has dependent snapshots."}
        self.note("OperationParked", effect=owed.effect.type_name, **facts)

    def events(self) -> Sequence[Any]:
        """The history."""
        return self.instance.collect_events()


# --- derived from the chart ---------------------------------------------------------------------------------------


def outcomes() -> dict[str, Callable[[], Sequence[Any]]]:
    """Each command of an instance with each way in which it can end."""
    derived: dict[str, Callable[[], Sequence[Any]]] = {}
    for name in ("create_instance", *EXAMPLES):
        operation = started(name).operation
        assert operation is not None
        can_fail = [state for state in operation.plan if _reached(name, state).can("failed")]
        cannot = [state for state in operation.plan if state not in can_fail]
        cancellable = [state for state in operation.plan if Instance.can_from(state, "cancel_requested")]
        derived[f"{name}-done"] = partial(_done, name)
        if can_fail:
            derived[f"{name}-failed"] = partial(_failed, name, can_fail[-1])
            derived[f"{name}-deadline"] = partial(_deadline, name, can_fail[-1])
        if cancellable:
            derived[f"{name}-cancelled"] = partial(_cancelled, name, cancellable[-1])
        if cannot:
            derived.update(_parkings(name, partial(_parked, name, cannot[0])))
        if can_fail and _undo(name, can_fail[-1]):
            derived.update(_parkings(f"{name}-undo", partial(_undo_parked, name, can_fail[-1])))
        lasting = [state for state in operation.plan if _owed(name, state).effect.lasts]
        if lasting:
            derived[f"{name}-last_look_found"] = partial(_last_look, name, lasting[0], found=True)
            derived[f"{name}-last_look_in_vain"] = partial(_last_look, name, lasting[0], found=False)
        if _reached(name, operation.plan[-1]).can("deletion_requested"):
            derived[f"{name}-deleted"] = partial(_deleted, name, operation.plan[-1])
    return derived


def _reached(name: str, state: str) -> Instance:
    teller = Teller(name)
    teller.until(state)
    return teller.instance


def _owed(name: str, state: str) -> Obligation:
    owed = _reached(name, state).owes()
    assert owed is not None
    return owed


def _undo(name: str, state: str) -> bool:
    """Whether a failure in the state leads to one that undoes, from which none leads on."""
    teller = Teller(name)
    teller.until(state)
    teller.fail()
    return teller.instance.owes() is not None and not teller.instance.can("failed")


def _done(name: str) -> Sequence[Any]:
    teller = Teller(name)
    teller.settle()
    return teller.events()


def _failed(name: str, state: str) -> Sequence[Any]:
    teller = Teller(name)
    teller.until(state)
    teller.fail()
    teller.settle()
    return teller.events()


def _deadline(name: str, state: str) -> Sequence[Any]:
    teller = Teller(name)
    teller.until(state)
    teller.attempt(1)
    teller.fail("deadline_exceeded", "it was not done by then; last error: timeout: no answer within 30 s")
    teller.settle()
    return teller.events()


def _last_look(name: str, state: str, *, found: bool) -> Sequence[Any]:
    teller = Teller(name)
    teller.until(state)
    teller.attempt(1)
    teller.doubt()
    if not found and teller.instance.can("failed"):
        teller.fail("timeout", "no answer within 30 s; looked at again when no call could act any longer")
    elif not found:
        teller.park()
        return teller.events()
    teller.settle()
    return teller.events()


def _cancelled(name: str, state: str) -> Sequence[Any]:
    teller = Teller(name)
    teller.until(state)
    teller.intervene("cancel_operation", reason="asked for by mistake")
    teller.settle()
    return teller.events()


def _parkings(name: str, parked: Callable[[], Teller]) -> dict[str, Callable[[], Sequence[Any]]]:
    """The operation parked, and what each command makes of it."""
    return {
        f"{name}-parked": lambda: parked().events(),
        f"{name}-retried": lambda: _intervened(parked(), "retry_operation"),
        f"{name}-skipped": lambda: _intervened(parked(), "skip_step", facts={}, reason="made true by hand"),
        f"{name}-abandoned": lambda: _intervened(parked(), "abandon_operation", reason="beyond repair"),
    }


def _parked(name: str, state: str) -> Teller:
    teller = Teller(name)
    teller.until(state)
    teller.attempt(1)
    teller.park()
    return teller


def _undo_parked(name: str, state: str) -> Teller:
    teller = Teller(name)
    teller.until(state)
    teller.fail()
    teller.park()
    return teller


def _intervened(teller: Teller, command: str, **arguments: Any) -> Sequence[Any]:
    teller.intervene(command, **arguments)
    teller.settle()
    return teller.events()


def _deleted(name: str, state: str) -> Sequence[Any]:
    teller = Teller(name)
    teller.until(state)
    teller.command(DeleteInstance())
    teller.settle()
    return teller.events()


# --- told one by one ----------------------------------------------------------------------------------------------


def _smallest() -> Sequence[Any]:
    bare: dict[str, Any] = {"datastore_version": None, "volume_type": None, "databases": (), "users": ()}
    teller = Teller("create_instance", **bare, root_password_ref=None, overrides={}, availability_zone=None)
    teller.settle()
    return teller.events()


def _kept() -> Sequence[Any]:
    teller = Teller("create_instance", keep_on_failure=True)
    teller.until("build_health")
    teller.fail()
    return teller.events()


def _hindered() -> Sequence[Any]:
    teller = Teller("create_instance")
    while teller.instance.owes() is not None:
        teller.attempt(1)
        teller.attempt(2)
        teller.pay()
    return teller.events()


def _late() -> Sequence[Any]:
    teller = Teller("create_instance")
    teller.until("build_server")
    teller.command(DeleteInstance())
    teller.note("LateOutcome", effect="EnsureServer", facts=YIELDS["server_created"])
    teller.settle()
    return teller.events()


def _surplus() -> Sequence[Any]:
    teller = Teller("create_instance")
    teller.until("build_volume")
    teller.note("CallUnanswered", effect="EnsureVolume", until=NOON + 60 * STEP)
    teller.attempt(1)
    teller.settle()
    return teller.events()


def _with_all(end: Callable[[Teller], None]) -> Sequence[Any]:
    (asked,) = CreateInstance.variants
    access = msgspec.convert(asked["access"], Access)
    wanted = {"nics": tuple(asked["nics"]), "locality": asked["locality"], "image_id": asked["image_id"]}
    teller = Teller("create_instance", catalogue=MANAGED, access=access, volume_type="remote", **wanted)
    end(teller)
    teller.settle()
    return teller.events()


def _undone(teller: Teller) -> None:
    teller.until("build_address")
    teller.fail()


def _elsewhere() -> Sequence[Any]:
    """In another region than the cloud's own; another volume of the name found there, a delete in the end."""
    teller = Teller("create_instance", catalogue=REGIONS, region="two", availability_zone=None, volume_type=None)
    teller.settle()
    teller.command(EXAMPLES["resize_flavor"])
    teller.settle()
    found = Resource(kind=ResourceKind.VOLUME, id="volume-2", name=teller.instance.resource_name, region="two")
    teller.see(note_surplus, found)
    teller.see(note_removed, found)
    teller.command(DeleteInstance())
    teller.settle()
    return teller.events()


def _detached_meanwhile(teller: Teller) -> None:
    teller.settle()
    teller.command(EXAMPLES["resize_volume"])


def _attached_again(teller: Teller) -> None:
    _detached_meanwhile(teller)
    teller.until("resize_volume_detach")
    teller.fail()


def _made_private_and_deleted(teller: Teller) -> None:
    teller.settle()
    teller.command(UpdateAccess(public=False))
    teller.settle()
    teller.command(DeleteInstance())


def _first_update(end: Callable[[Teller], None]) -> Sequence[Any]:
    teller = Teller("create_instance", catalogue=BARE)
    teller.settle()
    teller.catalogue = CATALOGUE
    teller.command(EXAMPLES["update_access"])
    end(teller)
    teller.settle()
    return teller.events()


def _not_secured(teller: Teller) -> None:
    teller.until("update_port")
    teller.fail()


def _with_surplus(teller: Teller) -> None:
    teller.note("CallUnanswered", effect="EnsureSecurityGroup", until=NOON + 60 * STEP)


def _with_snapshot() -> Sequence[Any]:
    teller = Teller("create_instance")
    teller.settle()
    teller.command(Rebuild(snapshot=True))
    teller.settle()
    return teller.events()


def _snapshot_not_made() -> Sequence[Any]:
    teller = Teller("create_instance")
    teller.settle()
    teller.command(Rebuild(snapshot=True))
    teller.until("rebuild_snapshot")
    teller.fail()
    teller.settle()
    return teller.events()


def _snapshot_kept_and_deleted() -> Sequence[Any]:
    teller = Teller("create_instance")
    teller.settle()
    teller.command(Rebuild(snapshot=True))
    teller.until("rebuild_server")
    teller.fail()
    teller.command(DeleteInstance())
    teller.settle()
    return teller.events()


def _deleted_while_off() -> Sequence[Any]:
    teller = Teller("start_instance")
    teller.command(DeleteInstance())
    teller.settle()
    return teller.events()


def _observed() -> Sequence[Any]:
    """A second volume, found and removed; and another, found after the delete and not gone yet."""
    teller = Teller("create_instance")
    teller.settle()
    first, second = (
        Resource(kind=ResourceKind.VOLUME, id=name, name=teller.instance.resource_name, status="available", size=1)
        for name in ("volume-2", "volume-3")
    )
    teller.see(note_surplus, first)
    teller.see(note_removed, first)
    teller.command(DeleteInstance())
    teller.settle()
    teller.see(note_surplus, second)
    return teller.events()


def _drifted() -> Sequence[Any]:
    """A volume grown and a server moved by hand; then the volume alone; then all as it was, but for the port."""
    teller = Teller("create_instance")
    teller.settle()
    grown, moved, missed = (
        Drift(resource=ResourceKind.VOLUME, id="volume-1", what=DriftKind.SIZE, believed="1", seen="7"),
        Drift(resource=ResourceKind.SERVER, id="server-1", what=DriftKind.HOST, believed="host-1", seen="host-2"),
        Drift(resource=ResourceKind.PORT, id="port-1", what=DriftKind.GONE),
    )
    for drift in ((grown, moved), (grown,), (missed,)):
        now = Look(entered=teller.instance.entered, drift=drift)
        teller.see(lambda instance, seen, at: note(instance, seen, seen, at=at), now)
    return teller.events()


def _disowned() -> Sequence[Any]:
    """Another volume of the name, left alone by itself, is removed because somebody says so."""
    teller = Teller("create_instance")
    teller.settle()
    other = Resource(kind=ResourceKind.VOLUME, id="volume-2", name=teller.instance.resource_name, status="available")
    teller.see(lambda instance, seen, at: disown(instance, seen, actor="bob", at=at), other)
    teller.see(note_removed, other)
    return teller.events()


def _adopted() -> Sequence[Any]:
    """Another volume of the name takes the place of one that was lost, because somebody says so."""
    teller = Teller("create_instance")
    teller.settle()
    lost = Drift(resource=ResourceKind.VOLUME, id="volume-1", what=DriftKind.GONE)
    teller.see(
        lambda instance, seen, at: note(instance, seen, seen, at=at),
        Look(entered=teller.instance.entered, drift=(lost,)),
    )
    other = Resource(kind=ResourceKind.VOLUME, id="volume-2", name=teller.instance.resource_name, status="available")
    teller.see(lambda instance, seen, at: adopt(instance, seen, [seen], actor="bob", at=at), other)
    teller.command(DeleteInstance())
    teller.settle()
    return teller.events()


def _long_life() -> Sequence[Any]:
    teller = Teller("create_instance")
    teller.settle()
    for name in ("resize_volume", "migrate", "reboot", "resize_flavor", "restart", "stop_instance", "start_instance"):
        teller.command(EXAMPLES[name])
        teller.settle()
    teller.command(DeleteInstance())
    teller.settle()
    return teller.events()


def _health() -> Sequence[Any]:
    health = Health.watch(ID, project="acme", partition=7, at=NOON)
    for status in (HealthStatus.HEALTHY, HealthStatus.SUSPECT, HealthStatus.DOWN, HealthStatus.HEALTHY):
        health.observe(status, f"it is {status}", at=NOON)
    health.forget(at=NOON)
    return health.collect_events()


def _quota() -> Sequence[Any]:
    first, second = uuid5(ID, "first"), uuid5(ID, "second")
    quota = Quota.create(quota_id("acme"), ReserveQuota(instance_id=first, ram=512, volumes=1), context())
    quota.execute(ReserveQuota(instance_id=second, ram=512, volumes=1), context())
    quota.execute(ReserveQuota(instance_id=first, ram=2048, volumes=5), context())
    quota.execute(ReleaseQuota(instance_id=second), context())
    return quota.collect_events()


def _quota_set() -> Sequence[Any]:
    first, second = uuid5(ID, "first"), uuid5(ID, "second")
    quota = Quota.create(quota_id("acme"), SetQuota(instances=5, ram=-1), context())
    quota.execute(ReserveQuota(instance_id=first, ram=512, volumes=1, as_of=3), context())
    for backup in (first, second):
        quota.execute(ReserveBackup(backup_id=backup), context())
    quota.execute(ReleaseBackup(backup_id=second), context())
    quota.execute(SetQuota(ram=None, backups=3), context())
    return quota.collect_events()


def _record(event: type[Event], **said: Any) -> Sequence[Any]:
    facts: dict[str, Any] = {
        "originator_id": record_id("acme", ID),
        "originator_version": 1,
        "timestamp": NOON,
        "project": "acme",
        "command_id": ID,
        "command": "restart",
        "aggregate_kind": "instance",
        "aggregate_id": str(ID),
        "actor": "alice",
        "content": "0" * 64,
        "sequence": 9,
    }
    return [event(**facts, **said)]


OTHERS: dict[str, Callable[[], Sequence[Any]]] = {
    "create_instance-smallest": _smallest,
    "create_instance-kept": _kept,
    "create_instance-hindered": _hindered,
    "create_instance-late_outcome": _late,
    "create_instance-surplus": _surplus,
    "create_instance-with_all-done": partial(_with_all, lambda _: None),
    "create_instance-with_all-failed": partial(_with_all, _undone),
    "resize_volume-offline-done": partial(_with_all, _detached_meanwhile),
    "resize_volume-offline-failed": partial(_with_all, _attached_again),
    "update_access-private-deleted": partial(_with_all, _made_private_and_deleted),
    "update_access-first-done": partial(_first_update, lambda _: None),
    "update_access-first-failed": partial(_first_update, _not_secured),
    "update_access-first-surplus": partial(_first_update, _with_surplus),
    "rebuild-with_snapshot-done": _with_snapshot,
    "rebuild-with_snapshot-failed": _snapshot_not_made,
    "rebuild-with_snapshot-kept-deleted": _snapshot_kept_and_deleted,
    "start_instance-deleted_while_off": _deleted_while_off,
    "instance-in_another_region": _elsewhere,
    "instance-long_life": _long_life,
    "instance-observed": _observed,
    "instance-drifted": _drifted,
    "instance-disowned": _disowned,
    "instance-adopted": _adopted,
    "health": _health,
    "quota": _quota,
    "quota-set": _quota_set,
    "command-accepted": partial(_record, CommandAccepted, version=3),
    "command-rejected": partial(_record, CommandRejected, code="conflict", reason="another operation runs"),
}


def scenarios() -> dict[str, Callable[[], Sequence[Any]]]:
    """All histories that must be on file, by the file's name."""
    return {**outcomes(), **OTHERS}
