"""Through settler and store: whatever becomes of a call, at the end the cloud holds what the aggregate says, no more.

Every operation runs in virtual time with each call that it makes meeting each fault; what a late call has doubled is
gone when its operation ends. Which calls there are is found by running, which operations by looking at the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest

from aggregates.base import Refusal
from aggregates.catalogue import Catalogue
from aggregates.commands import OPERATIONS, InstanceCommand, example, variants
from aggregates.instance import Instance
from engine.clouds.simulated import BARE, CATALOGUE, FAULTS, GUEST_FAULTS, Faults, GuestFault
from engine.clouds.simulated.faults import LATEST, Kind
from engine.clouds.simulated.guests import GuestDraw, GuestFaultKind
from engine.clouds.simulated.site import Site
from engine.messages import GuestVerb
from tests.clouds.ambiguous import SEVERAL, Drawn, Storm
from tests.clouds.engine_core import directory, life
from tests.simulation.virtual_time import VirtualLoop, run
from tests.support.given import EXAMPLES, context, settle

DELETE = example(OPERATIONS["delete_instance"])
# A guest whose journal went with its agent knows no database any more: that ends an operation, rightly.
LASTING_GUEST_FAULTS = sorted(
    name
    for name, fault in GUEST_FAULTS.items()
    if fault.kind not in (GuestFaultKind.REPLACED_BEFORE, GuestFaultKind.REPLACED_AFTER)
)


class Life(NamedTuple):
    """The shortest life with an operation, ended by it or by a deletion. `made_on`: what the cloud offered at first."""

    name: str
    commands: tuple[InstanceCommand, ...]
    made_on: Catalogue


def _lives() -> Iterator[tuple[str, Life]]:
    """One with each way that an operation can go through the chart when all goes well, whatever was made before."""
    passed: set[tuple[str, tuple[str, ...]]] = set()
    for made, create, offered in _creates():
        for name, command in OPERATIONS.items():
            for ordinal, told in enumerate((example(command), *_flipped(example(command)))):
                if command.creates:
                    commands: tuple[InstanceCommand, ...] | None = (create, DELETE)
                else:
                    commands = _allowing(create, offered, told)
                if commands is None:
                    continue
                plan = _plan(commands, offered, name)
                if (name, plan) not in passed:
                    passed.add((name, plan))
                    yield f"{name}{made}{'-other' if ordinal else ''}", Life(name, commands, offered)


def _creates() -> Iterator[tuple[str, InstanceCommand, Catalogue]]:
    create = OPERATIONS["create_instance"]
    yield "", example(create), CATALOGUE
    for variant in variants(create):
        yield "-of-all", variant, CATALOGUE
    yield "-of-old", example(create), BARE


def _flipped(command: InstanceCommand) -> Iterator[InstanceCommand]:
    for field in command.__struct_fields__:
        if isinstance(value := getattr(command, field), bool):
            yield msgspec.structs.replace(command, **{field: not value})


def _allowing(create: InstanceCommand, offered: Catalogue, told: InstanceCommand) -> tuple[InstanceCommand, ...] | None:
    """The fewest commands that lead to this one and to the end; None where none do."""
    end = () if told == DELETE else (DELETE,)
    for before in ((), *((other,) for other in EXAMPLES.values())):
        commands = (create, *before, told, *end)
        if _plan(commands, offered, told.wire_name()):
            return commands
    return None


def _plan(commands: tuple[InstanceCommand, ...], offered: Catalogue, name: str) -> tuple[str, ...]:
    """What the operation of this name passes; nothing if a command is refused."""
    create, *others = commands
    instance = Instance.create(UUID(int=7), create, context(catalogue=offered))  # type: ignore[arg-type]
    plans = {create.wire_name(): instance.operation.plan if instance.operation else ()}
    try:
        for command in others:
            settle(instance)
            instance.execute(command, context(catalogue=CATALOGUE))
            plans[command.wire_name()] = instance.operation.plan if instance.operation else ()
    except Refusal:
        return ()
    return plans[name]


LIVES = dict(_lives())


def lives(name: str) -> tuple[InstanceCommand, ...]:
    """The shortest life with this operation, on a cloud that offers all that there is."""
    return LIVES[name].commands


each_operation = pytest.mark.parametrize("name", LIVES)


def _lived(name: str, drawn: Drawn, *, guest_fault: str | None = None, **given: Any) -> Site:
    """A life in which calls of this operation meet faults."""
    site = Site(build_time=3.0, verb_time=1.0)
    site.api.faults = Faults(drawn)
    _, commands, made_on = LIVES[name]

    def begins(command: InstanceCommand) -> None:
        drawn.listening = command.wire_name() == LIVES[name].name
        site.agents.faults.draw = _once_each(guest_fault) if drawn.listening and guest_fault else None

    with directory() as path:
        run(life(site, commands, path, begins=begins, made_on=made_on, **given), VirtualLoop())
    return site


def _once_each(fault: str) -> GuestDraw:
    """Each verb meets the fault at its first request."""
    met: set[GuestVerb] = set()

    def draw(_instance_id: str, verb: GuestVerb) -> GuestFault | None:
        if verb in met:
            return None
        met.add(verb)
        return GUEST_FAULTS[fault]

    return draw


def _cells(name: str) -> Iterator[tuple[int, str, str]]:
    """Each call of the operation, and each fault: the n-th, its name, the fault's."""
    drawn = Drawn()
    _lived(name, drawn)
    for n, call in enumerate(drawn.calls):
        for fault in FAULTS:
            if fault != "stale_data" or call.name.startswith("list_"):
                yield n, call.name, fault


@pytest.mark.timeout(600)  # some hundred lives, each of some hundredths of a second on a quiet machine
@each_operation
def test_every_call_of_every_operation_may_meet_every_fault(name: str) -> None:
    undisturbed = _changes(_lived(name, Drawn()))
    for n, call, called in _cells(name):
        fault = FAULTS[called]
        drawn = Drawn(n, fault, SEVERAL if fault.kind is Kind.REFUSED else 1)
        try:
            site = _lived(name, drawn, patience=LATEST * 1.5 if fault.kind is Kind.LATE else 0.0)
        except AssertionError as failed:
            raise AssertionError(f"{name}, call {n}, {call}: {called}") from failed
        assert _changes(site) == undisturbed, f"{name}, call {n}, {call}: {called}"


@each_operation
def test_where_every_call_is_answered_nothing_is_noted_and_nothing_waited_for(name: str) -> None:
    with directory() as path:
        ended = run(
            life(Site(), LIVES[name].commands, path, begins=lambda _: None, made_on=LIVES[name].made_on), VirtualLoop()
        )
    assert ended.unanswered_until is None


def _changes(site: Site) -> list[str]:
    """What the cloud has carried out; of what nothing fences only whether as many are gone as were made."""
    changes = sorted(f"{entry.action} {entry.kind}" for entry in site.api.ledger)
    for kind in ("volume", "snapshot", "security_group", "server_group"):
        for _ in range(changes.count(f"create {kind}") - 1):
            changes.remove(f"create {kind}")
            changes.remove(f"delete {kind}")
    return changes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("called", ["takes_60_seconds", "acts_and_never_answers"])
@each_operation
def test_whoever_goes_on_after_a_death_reckons_with_the_call_that_was_under_way(name: str, called: str) -> None:
    undisturbed = _changes(_lived(name, Drawn()))
    for n, call in sorted({(n, call) for n, call, _ in _cells(name)}):
        drawn = Drawn(n, FAULTS[called])
        try:
            site = _lived(name, drawn, dies=drawn.met, patience=LATEST * 1.5)
        except AssertionError as failed:
            raise AssertionError(f"{name}, call {n}, {call}: {called}") from failed
        assert drawn.met.is_set()
        assert _changes(site) == undisturbed, f"{name}, call {n}, {call}: {called}"


@pytest.mark.parametrize("seed", range(6))
@each_operation
def test_faults_may_come_in_any_number(name: str, seed: int) -> None:
    _lived(name, Storm(seed, until=600.0), patience=LATEST * 1.5, may_fail=True)


@pytest.mark.parametrize("fault", LASTING_GUEST_FAULTS)
@each_operation
def test_every_request_to_a_guest_may_meet_every_fault(name: str, fault: str) -> None:
    undisturbed = [deed.verb for deed in _lived(name, Drawn()).agents.ledger]
    verbs = [deed.verb for deed in _lived(name, Drawn(), guest_fault=fault).agents.ledger]
    assert verbs.count("install") == 1
    if LIVES[name].name == "delete_instance" and "stop" not in verbs:
        verbs.append("stop")  # one short try was all it had
    assert set(verbs) == set(undisturbed)
    assert fault == GuestFaultKind.DIES_AFTER or sorted(verbs) == sorted(undisturbed)


def test_a_late_volume_is_made_twice_and_removed_before_the_create_ends() -> None:
    n = next(n for n, call, _ in _cells("create_instance") if call == "create_volume")
    site = _lived("create_instance", Drawn(n, FAULTS["takes_60_seconds"]))
    made = [entry.id for entry in site.api.ledger if (entry.action, entry.kind) == ("create", "volume")]
    assert len(made) == 2
