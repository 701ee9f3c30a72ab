"""Real aggregates driven through their lifecycles into a real event store, for the read models to follow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent as LibraryStoredEvent

from aggregates.base import Context, Failure, Refusal
from aggregates.catalogue import Catalogue, Datastore, Flavor
from aggregates.commands import (
    INTERVENTIONS,
    Command,
    CreateInstance,
    DeleteInstance,
    Migrate,
    Reboot,
    ReleaseQuota,
    ReserveQuota,
    ResizeFlavor,
    ResizeVolume,
    Restart,
    StartInstance,
    StopInstance,
)
from aggregates.health import Health, HealthStatus
from aggregates.instance import Instance
from aggregates.obligations import quota_id
from aggregates.observation import adopt, look, note, note_removed, note_surplus
from aggregates.quota import Quota
from aggregates.record import CommandAccepted, CommandRejected, record_id
from aggregates.resources import Resource, ResourceKind
from engine.databases import DurableSQLiteDatastore
from engine.event_log import EventLog
from engine.mapper import MsgspecMapper
from engine.recorders import SQLiteEventRecorder

VOLUME = ResourceKind.VOLUME
SMALL = Flavor(id="1", name="small", vcpus=1, ram=512)
LARGE = Flavor(id="2", name="large", vcpus=2, ram=2048)
CATALOGUE = Catalogue(
    flavors=(SMALL, LARGE),
    datastores=(Datastore(manager="postgresql", port=5432, versions=("15", "16"), parameters=frozenset({"work_mem"})),),
    hosts=("a", "b"),
)
FACTS: dict[str, dict[str, Any]] = {
    "port_created": {"port_id": "port-1", "address": "127.0.1.1"},
    "volume_created": {"volume_id": "volume-1"},
    "server_created": {"server_id": "server-1", "host": "a"},
    "database_prepared": {"port": 5432},
    "server_migrated": {"new_host": "b"},
    "server_resized": {"new_host": "b"},
}
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Story:
    """Appends to one event store; its clock steps by a second with each event, its ids come from the seed."""

    def __init__(self, path: Any, seed: int = 0) -> None:
        self.recorder = SQLiteEventRecorder(DurableSQLiteDatastore(f"file:{path}"))
        self.recorder.create_table()
        self.log = EventLog(self.recorder, MsgspecMapper())
        self.random = random.Random(seed)
        self.now = START
        self.instances: dict[UUID, Instance] = {}
        self.quotas: dict[str, Quota] = {}
        self.healths: dict[UUID, Health] = {}
        self._sequence = 0

    def close(self) -> None:
        self.log.close()

    def tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    # --- appending ------------------------------------------------------------------------------------------------

    def append(self, *events: Any) -> None:
        self.recorder.insert_events([self.log.mapper.to_stored_event(event) for event in events])

    def append_raw(self, topic: str, state: bytes, aggregate_id: UUID | None = None) -> None:
        """Append an event as a newer or a broken writer might."""
        stored = LibraryStoredEvent(aggregate_id or self.uuid(), 99, topic, state)
        self.recorder.insert_events([stored])

    def spoil(self) -> int:
        """Append an event that no lifecycle leads to, so that models of states cannot take it; its position."""
        instance_id = next(iter(self.instances))
        body = {
            "originator_id": instance_id,
            "originator_version": 99,
            "timestamp": self.tick(),
            "state": "no_such_state",
            "operation_id": instance_id,
        }
        self.append_raw("instance.PortDeleted", msgspec.json.encode(body), instance_id)
        return self.log.end()

    def context(self, project: str, command_id: UUID, actor: str) -> Context:
        return Context(
            at=self.tick(), command_id=command_id, actor=actor, project=project, partition=0, catalogue=CATALOGUE
        )

    def command(
        self,
        aggregate_id: UUID,
        command: Command,
        *,
        project: str = "blue",
        actor: str = "ann",
        command_id: UUID | None = None,
    ) -> UUID:
        """Decide the command and record what was decided; the command's id."""
        command_id = command_id or self.uuid()
        context = self.context(project, command_id, actor)
        try:
            aggregate = self._decide(aggregate_id, command, context)
        except Refusal as refusal:
            self.append(
                self._record(CommandRejected, command, aggregate_id, context, code=refusal.code, reason=refusal.message)
            )
            return command_id
        accepted = self._record(CommandAccepted, command, aggregate_id, context, version=aggregate.version)
        self.append(accepted, *aggregate.collect_events())
        return command_id

    def _decide(self, aggregate_id: UUID, command: Command, context: Context) -> Instance | Quota:
        if isinstance(command, CreateInstance):
            self.instances[aggregate_id] = instance = Instance.create(aggregate_id, command, context)
            return instance
        if isinstance(command, ReserveQuota | ReleaseQuota):
            quota = self.quotas.get(context.project)
            if quota is None:
                self.quotas[context.project] = quota = Quota.create(aggregate_id, command, context)
                return quota
            quota.execute(command, context)
            return quota
        if aggregate_id not in self.instances:
            raise Refusal("not_found", f"no instance {aggregate_id} in project {context.project}")
        self.instances[aggregate_id].execute(command, context)
        return self.instances[aggregate_id]

    def _record(self, event: Any, command: Command, aggregate_id: UUID, context: Context, **decided: Any) -> Any:
        self._sequence += 1
        return event(
            originator_id=record_id(context.project, context.command_id),
            originator_version=1,
            timestamp=context.at,
            project=context.project,
            command_id=context.command_id,
            command=command.wire_name(),
            aggregate_kind=command.kind,
            aggregate_id=str(aggregate_id),
            actor=context.actor,
            content="0" * 64,
            sequence=self._sequence,
            **decided,
        )

    # --- lifecycles -----------------------------------------------------------------------------------------------

    def create(self, *, project: str = "blue", name: str = "db", actor: str = "ann", **arguments: Any) -> UUID:
        """Accept a create_instance; the instance's id."""
        instance_id = self.uuid()
        command = CreateInstance(name=name, flavor="small", datastore="postgresql", volume_size=5, **arguments)
        self.command(instance_id, command, project=project, actor=actor)
        return instance_id

    def pay(self, instance_id: UUID) -> bool:
        """Pay what is owed now; whether anything was."""
        instance = self.instances[instance_id]
        owed = instance.owes()
        if owed is None:
            return False
        instance.take(owed.then, at=self.tick(), **owed.facts, **FACTS.get(owed.then, {}))
        self.append(*instance.collect_events())
        return True

    def settle(self, instance_id: UUID) -> None:
        """Pay until nothing is owed."""
        while self.pay(instance_id):
            pass

    def until(self, instance_id: UUID, state: str) -> None:
        """Pay until the state is reached."""
        while self.instances[instance_id].state != state:
            assert self.pay(instance_id), f"never came to {state}"

    def fail(self, instance_id: UUID, code: str = "no_valid_host", message: str = "No valid host was found.") -> None:
        """What is owed now fails for good."""
        instance = self.instances[instance_id]
        failure = Failure(code=code, message=message, state=instance.state)
        instance.take("failed", at=self.tick(), failure=failure)
        self.append(*instance.collect_events())

    def note(self, instance_id: UUID, event: str, **facts: Any) -> None:
        """Record what leaves the state as it is."""
        instance = self.instances[instance_id]
        instance.note(event, at=self.tick(), **facts)
        self.append(*instance.collect_events())

    def stumble(self, instance_id: UUID, attempt: int = 1) -> None:
        """A try fails in a way that may pass."""
        owed = self.instances[instance_id].owes()
        assert owed is not None
        self.note(
            instance_id,
            "AttemptFailed",
            effect=owed.effect.type_name,
            attempt=attempt,
            code="cloud_unavailable",
            message="503",
            retry_at=self.now + timedelta(seconds=5),
        )

    def park(self, instance_id: UUID) -> None:
        """What is owed cannot be paid."""
        owed = self.instances[instance_id].owes()
        assert owed is not None
        self.note(instance_id, "OperationParked", effect=owed.effect.type_name, code="forbidden", message="403")

    def intervene(self, instance_id: UUID, name: str, **arguments: Any) -> UUID:
        """A command about the operation that runs, or about one that never was; its id."""
        instance = self.instances[instance_id]
        running = instance.operation.id if instance.operation is not None else UUID(int=0)
        command = INTERVENTIONS[name](**{"operation_id": running, **arguments})
        return self.command(instance_id, command, project=instance.project, actor="bob")

    def health(self, instance_id: UUID, health: HealthStatus) -> None:
        """The instance's health is this one now."""
        known = self.healths.get(instance_id)
        if known is None:
            instance = self.instances[instance_id]
            known = Health.watch(instance_id, project=instance.project, partition=0, at=self.tick())
            self.healths[instance_id] = known
        known.observe(health, "heard so", at=self.tick())
        self.append(*known.collect_events())

    def drift(self, instance_id: UUID, *, volume_size: int | None = None) -> None:
        """The cloud shows the volume with this size, or with the recorded one, in two looks in a row."""
        instance = self.instances[instance_id]
        size = instance.volume_size if volume_size is None else volume_size
        told: dict[ResourceKind, dict[str, Any]] = {
            ResourceKind.SERVER: {"status": instance.state},
            VOLUME: {"size": size, "server_id": instance.server_id},
        }
        shown = [
            Resource(kind=kind, id=str(instance.recorded(kind)), name=instance.resource_name, **told.get(kind, {}))
            for kind in ResourceKind
        ]
        now = look(instance, shown)
        if now is not None:
            note(instance, now, now, at=self.tick())
            self.append(*instance.collect_events())

    def surplus(self, instance_id: UUID) -> None:
        """Something of the instance's name is found that is none of its own, and is gone."""
        instance = self.instances[instance_id]
        found = Resource(kind=VOLUME, id=str(self.uuid()), name=instance.resource_name)
        note_surplus(instance, found, at=self.tick())
        note_removed(instance, found, at=self.tick())
        self.append(*instance.collect_events())

    def adopt(self, instance_id: UUID) -> UUID:
        """A volume of its name is its own from now on; the volume's id."""
        instance, volume_id = self.instances[instance_id], self.uuid()
        found = Resource(kind=VOLUME, id=str(volume_id), name=instance.resource_name)
        adopt(instance, found, [found], actor="bob", at=self.tick())
        self.append(*instance.collect_events())
        return volume_id

    def reserve(self, project: str, instance_id: UUID) -> UUID:
        """The project's quota holds something for the instance; the command's id."""
        command = ReserveQuota(instance_id=instance_id, ram=512, volumes=5)
        return self.command(quota_id(project), command, project=project, actor="engine")

    # --- by chance ------------------------------------------------------------------------------------------------

    def wander(self, steps: int) -> Iterator[int]:
        """Let things happen at random to several instances in two projects."""
        commands: list[Any] = [
            Restart(),
            Reboot(hard=True),
            ResizeVolume(new_size=9),
            ResizeFlavor(flavor="large"),
            Migrate(host="b"),
            StopInstance(),
            StartInstance(),
            DeleteInstance(),
        ]
        for step in range(steps):
            ids = list(self.instances)
            dice = self.random.random()
            if not ids or dice < 0.08:
                instance_id = self.create(
                    project=self.random.choice(("blue", "green")),
                    name=f"db-{step}",
                    keep_on_failure=self.random.random() < 0.5,
                )
                self.reserve(self.instances[instance_id].project, instance_id)
            else:
                self._happen(self.random.choice(ids), dice, commands)
            yield step

    def _happen(self, instance_id: UUID, dice: float, commands: list[Any]) -> None:
        instance = self.instances[instance_id]
        if dice < 0.2:
            self.command(instance_id, self.random.choice(commands), project=instance.project, actor="bob")
        elif dice < 0.23:
            self.intervene(instance_id, self.random.choice(sorted(INTERVENTIONS)))
        elif dice < 0.25:
            self.health(instance_id, self.random.choice(list(HealthStatus)))
        elif instance.owes() is None:
            if dice < 0.3:
                self.surplus(instance_id)
            elif dice < 0.5:
                self.drift(instance_id, volume_size=self.random.choice((None, 7, 9)))
        elif dice < 0.3 and instance.can("failed"):
            self.fail(instance_id)
        elif dice < 0.35:
            self.stumble(instance_id)
        elif dice < 0.37:
            self.park(instance_id)
        elif dice < 0.4:
            self.note(instance_id, "LateOutcome", effect="EnsureServer", facts={"server_id": f"late-{self.now:%S}"})
        else:
            self.pay(instance_id)
