"""What Holdfast promises (docs: the promises), as checks of what is left behind: the log, the cloud, the read models.

Each check yields one sentence for each breach, and nothing when the promise was kept. They judge from the evidence
alone, so they hold for real processes as well; what they are not shown they cannot see.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from aggregates.base import Lifecycled, Transitioned, decide
from aggregates.instance import Instance
from aggregates.instance_events import StepSkipped
from aggregates.obligations import admitted, quota_id
from aggregates.quota import Held, Quota
from aggregates.record import CommandAccepted, CommandRejected, record_id
from aggregates.resources import ResourceKind
from engine.clouds.simulated import Entry
from engine.event_log import EventLog, Stored, fold
from engine.messages import Outcome
from projections import commands
from projections.base import ReadModels
from projections.models import MODELS
from tests.projections.asking import catch_up, connect, dump

Inventory = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Resource(NamedTuple):
    """What an instance may hold: the kind, the attributes that are its name and id, and whether it is to be there."""

    kind: str
    name: str
    recorded: str
    wanted: Callable[[Instance], bool] = lambda _: True


RESOURCES = (
    Resource("ports", "resource_name", "port_id"),
    Resource("ports", "management_port_name", "management_port_id", lambda i: i.management_network is not None),
    Resource("volumes", "resource_name", "volume_id"),
    Resource("snapshots", "resource_name", "snapshot_id", lambda i: i.held(ResourceKind.SNAPSHOT) is not None),
    Resource("servers", "resource_name", "server_id"),
    Resource("server_groups", "resource_name", "server_group_id", lambda i: i.locality is not None),
    Resource("security_groups", "security_group_name", "security_group_id", lambda i: i.access is not None),
    Resource("floating_addresses", "resource_name", "floating_address_id", lambda i: i.public_address is not None),
)
WHOLE = frozenset({"ACTIVE", "SHUTOFF"})
NOTHING = frozenset({"DELETED", "FAILED"})
OVERDUE = timedelta(minutes=5)  # an operation may be over its deadline by one look, one try and a pause


class Evidence:
    """What is left behind. `learned`: the outcome that each acknowledged command's publisher was told, None if none.

    `models`: the directory of the read models, which nobody writes any more; a rebuild is made beside it.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        inventory: Inventory,
        ledger: Sequence[Entry],
        learned: Mapping[tuple[str, UUID], str | None],
        models: Path,
    ) -> None:
        self.log = log
        self.inventory = inventory
        self.ledger = ledger
        self.learned = learned
        self.models = models
        self.rebuilt = models.with_name(f"{models.name}-rebuilt")

    @cached_property
    def events(self) -> list[Stored]:
        """The whole log."""
        return self.log.read(0, 10_000_000)

    @cached_property
    def histories(self) -> dict[UUID, list[Stored]]:
        """The events of each aggregate, in the order of the log."""
        histories: dict[UUID, list[Stored]] = defaultdict(list)
        for stored in self.events:
            histories[stored.aggregate_id].append(stored)
        return dict(histories)

    @cached_property
    def rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows of the read models, followed to the end of the log, and those of a rebuild."""
        both = []
        for directory in (self.models, self.rebuilt):
            models = ReadModels(directory, MODELS)
            catch_up(models, self.log)
            both.append(dump(models))
            models.close()
        return both[0], both[1]

    @cached_property
    def left_by_operators(self) -> set[UUID]:
        """The instances of which somebody skipped a step: what it would have removed is left on his word."""
        return {stored.aggregate_id for stored in self.events if isinstance(stored.event, StepSkipped)}

    @cached_property
    def instances(self) -> dict[UUID, Instance]:
        """The instances as they are."""
        folded = {
            aggregate_id: fold([stored.event for stored in history])
            for aggregate_id, history in self.histories.items()
            if history[0].topic.startswith("instance.")
        }
        return {aggregate_id: each for aggregate_id, each in folded.items() if isinstance(each, Instance)}


def broken(evidence: Evidence) -> list[str]:
    """The breaches of all promises, once everything is quiet."""
    breaches: list[str] = []
    for check in CHECKS:
        try:
            breaches.extend(check(evidence))
        except Exception as error:  # noqa: BLE001 - evidence that cannot be read is a breach, too
            breaches.append(f"unreadable: {check.__name__}: {error!r}")
    return breaches


# --- 1: no accepted command is lost -------------------------------------------------------------------------------


def every_acknowledged_command_is_decided_once(evidence: Evidence) -> Iterator[str]:
    """Promise 1: it has exactly one record."""
    for project, command_id in evidence.learned:
        records = evidence.histories.get(record_id(project, command_id), [])
        if len(records) != 1:
            yield f"lost: command {command_id} of {project} has {len(records)} records"


def every_accepted_command_has_one_outcome(evidence: Evidence) -> Iterator[str]:
    """Promise 1: the operation that it began ended, once, or stands still with a reason."""
    for aggregate_id, instance in evidence.instances.items():
        begun: Counter[UUID] = Counter()
        for stored in evidence.histories[aggregate_id]:
            operation = getattr(stored.event, "operation", None)
            if operation is not None:
                begun[operation.id] += 1
        yield from (
            f"doubled: operation {operation_id} began {times} times"
            for operation_id, times in begun.items()
            if times > 1
        )
        for operation_id in begun:
            records = evidence.histories.get(record_id(instance.project, operation_id), [])
            if len(records) != 1 or not isinstance(records[0].event, CommandAccepted):
                yield f"unasked: operation {operation_id} of instance {aggregate_id} has no accepted command"
        if instance.owes() is not None and instance.parked is None:
            yield f"stuck: instance {aggregate_id} is in {instance.state} and owes what nobody pays"


def every_publisher_learned_the_outcome(evidence: Evidence) -> Iterator[str]:
    """Promise 1: and it is the one that the log tells."""
    _ = evidence.rows
    with closing(connect(evidence.rebuilt)) as connection:
        for (project, command_id), learned in evidence.learned.items():
            answer = commands.get(connection, project, str(command_id))
            told = None if answer is None else ("rejected" if not answer.accepted else answer.outcome)
            if told == Outcome.RUNNING and learned is None:
                continue  # parked: whoever asks is told so
            if told != learned:
                yield f"unlearned: the publisher of {command_id} was told {learned}, the log says {told}"


def every_record_is_of_a_command(evidence: Evidence) -> Iterator[str]:
    """Promise 1: what the version of an acceptance names is in the log."""
    for history in evidence.histories.values():
        for stored in history:
            event = stored.event
            if isinstance(event, CommandAccepted):
                decided = evidence.histories.get(UUID(event.aggregate_id), [])
                if len(decided) < event.version:
                    yield f"lost: command {event.command_id} was accepted and its events are not in the log"
            if isinstance(event, (CommandAccepted, CommandRejected)) and len(history) != 1:
                yield f"doubled: command {event.command_id} has {len(history)} records"


# --- 2: no orphan, no duplicate -----------------------------------------------------------------------------------


def the_cloud_holds_what_the_aggregates_say(evidence: Evidence) -> Iterator[str]:
    """Promise 2: all of it, and nothing else."""
    held: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for kind in {resource.kind for resource in RESOURCES}:
        for found in evidence.inventory[kind].values():
            held[kind, found["name"]].append(found)
    known = {(each.kind, getattr(i, each.name)) for i in evidence.instances.values() for each in RESOURCES}
    yield from (f"orphan: {held[whose]} belongs to no instance" for whose in held.keys() - known)
    for instance in evidence.instances.values():
        if instance.parked is None and instance.owes() is None and instance.id not in evidence.left_by_operators:
            yield from _agrees(instance, held)


def _agrees(instance: Instance, held: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    complete = True
    for each in RESOURCES:
        there = [found["id"] for found in held.get((each.kind, getattr(instance, each.name)), ())]
        believed = getattr(instance, each.recorded)
        wanted = [believed] if each.wanted(instance) else []
        complete = complete and there == wanted
        if instance.state in NOTHING and there:
            yield f"left over: instance {instance.id} is {instance.state} and has {each.kind} {there}"
        elif instance.state in WHOLE and there != wanted:
            yield f"untrue: instance {instance.id} is {instance.state} with {each.recorded} {wanted}, there is {there}"
        elif len(there) > 1 or (there and there != [believed]):
            yield f"orphan: instance {instance.id} in {instance.state} knows {each.recorded} {believed}, there: {there}"
    if instance.state in WHOLE and complete:
        name = instance.resource_name
        server, volume, port = (held[kind, name][0] for kind in ("servers", "volumes", "ports"))
        groups = held.get(("security_groups", instance.security_group_name), ())
        facts = {
            "security groups": (list(port["security_groups"]), [group["id"] for group in groups]),
            "let in": (
                {rule["cidr"] for group in groups for rule in group["rules"]},
                set(admitted(instance.access)),
            ),
            "flavor": (server["flavor_id"], instance.flavor.id),
            "host": (server["host"], instance.host),
            "status": (server["status"], instance.state),
            "volume_size": (volume["size"], instance.volume_size),
            "attached to": (volume["server_id"], server["id"]),
        }
        for fact, (real, believed) in facts.items():
            if real != believed:
                yield f"untrue: instance {instance.id} has {fact} {believed}, the cloud says {real}"
        if instance.drift and all(real == believed for real, believed in facts.values()):
            yield f"untrue: instance {instance.id} is as the cloud has it, and shows {[str(d) for d in instance.drift]}"


def every_resource_is_made_once(evidence: Evidence) -> Iterator[str]:
    """Promise 2: by the cloud's own ledger, or the surplus was removed."""
    made: dict[tuple[str, str], set[str]] = defaultdict(set)
    for entry in evidence.ledger:
        if entry.kind == "security_group_rule":
            continue  # a group may have many
        if entry.action == "create":
            made[entry.kind, entry.name].add(entry.id)
        elif entry.action == "delete":
            made[entry.kind, entry.name].discard(entry.id)
    for (kind, name), ids in made.items():
        if len(ids) > 1:
            yield f"doubled: {kind} {name} is there {len(ids)} times"


def quota_is_held_for_what_there_is(evidence: Evidence) -> Iterator[str]:
    """Promise 2: what a project holds is what its instances have."""
    by_project: dict[str, dict[UUID, Held]] = defaultdict(dict)
    unclear = set(evidence.left_by_operators)
    for instance_id, instance in evidence.instances.items():
        if instance.owes() is not None:
            unclear.add(instance_id)
        elif instance.state not in NOTHING:
            by_project[instance.project][instance_id] = Held(ram=instance.flavor.ram, volumes=instance.volume_size)
    for project in {instance.project for instance in evidence.instances.values()}:
        history = evidence.histories.get(quota_id(project), [])
        quota = fold([stored.event for stored in history])
        held = dict(quota.held) if isinstance(quota, Quota) else {}
        wanted = by_project[project]
        for instance_id in sorted((held.keys() | wanted.keys()) - unclear):
            if held.get(instance_id) != wanted.get(instance_id):
                yield (
                    f"untrue: the quota of {project} holds {held.get(instance_id)} for instance {instance_id}, "
                    f"which has {wanted.get(instance_id)}"
                )


# --- 3: nothing is stuck ------------------------------------------------------------------------------------------


def overdue(aggregates: Iterable[Lifecycled], now: datetime, grace: timedelta = OVERDUE) -> Iterator[str]:
    """Promise 3, at any time: past its deadline an operation does not go on forward; it undoes, ends or parks."""
    for aggregate in aggregates:
        operation = aggregate.operation
        if operation is None or aggregate.parked is not None or not aggregate.can("failed"):
            continue
        if now > operation.deadline + grace:
            yield f"stuck: operation {operation.id} in {aggregate.state} was due at {operation.deadline}, it is {now}"


# --- 4 and 5: status is true, history is the truth ----------------------------------------------------------------


def histories_are_whole_and_as_declared(evidence: Evidence) -> Iterator[str]:
    """Promise 5: versions without a gap, and each state's transition is one that the chart has."""
    declared = {event: transition for transition, event in Instance.events.items()}
    for aggregate_id, history in evidence.histories.items():
        if [stored.version for stored in history] != list(range(1, len(history) + 1)):
            yield f"gap: {aggregate_id} has the versions {[stored.version for stored in history]}"
            continue
        if history[0].topic.startswith("command."):
            continue
        aggregate: Any = None
        for stored in history:
            event = stored.event
            if isinstance(event, Transitioned) and type(event) in declared and isinstance(aggregate, Instance):
                facts = {f.name: getattr(event, f.name) for f in fields(event) if f.name != "state"}
                knowing = aggregate._knowing(facts)
                entered = decide(aggregate.chart, aggregate.state, declared[type(event)], subject=knowing, **facts)
                if entered != event.state:
                    yield f"undeclared: {aggregate_id} entered {event.state}, the chart says {entered}"
            aggregate = event.mutate(aggregate)


def read_models_equal_a_rebuild(evidence: Evidence) -> Iterator[str]:
    """Promises 4 and 5: dropped and made again from the log they are the same."""
    followed, made = evidence.rows
    for table, rows in made.items():
        if followed[table] != rows:
            differing = [row for row in (*rows, *followed[table]) if (row in rows) != (row in followed[table])]
            yield f"untrue: the read model {table} differs from a rebuild: {differing[:3]}"


CHECKS = (
    every_acknowledged_command_is_decided_once,
    every_accepted_command_has_one_outcome,
    every_publisher_learned_the_outcome,
    every_record_is_of_a_command,
    the_cloud_holds_what_the_aggregates_say,
    every_resource_is_made_once,
    quota_is_held_for_what_there_is,
    histories_are_whole_and_as_declared,
    read_models_equal_a_rebuild,
)
