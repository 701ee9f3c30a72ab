"""Through settler and store: whatever becomes of a call, at the end the cloud holds what the aggregate says, no more.

Every operation runs in virtual time with each call that it makes meeting each fault; what a late call has doubled is
gone when its operation ends. Which calls there are is found by running, which operations by looking at the commands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aggregates.base import Refusal
from aggregates.commands import OPERATIONS, InstanceCommand, example
from engine.clouds.simulated import FAULTS, GUEST_FAULTS, Faults, GuestFault
from engine.clouds.simulated.faults import LATEST, Kind
from engine.clouds.simulated.guests import GuestDraw, GuestFaultKind
from engine.clouds.simulated.site import Site
from engine.messages import GuestVerb
from tests.clouds.ambiguous import SEVERAL, Drawn, Storm
from tests.clouds.engine_core import directory, life
from tests.simulation.virtual_time import VirtualLoop, run
from tests.support.given import EXAMPLES, active, context, settle

CREATE = example(OPERATIONS["create_instance"])
DELETE = example(OPERATIONS["delete_instance"])
# A guest whose journal went with its agent knows no database any more: that ends an operation, rightly.
LASTING_GUEST_FAULTS = sorted(
    name
    for name, fault in GUEST_FAULTS.items()
    if fault.kind not in (GuestFaultKind.REPLACED_BEFORE, GuestFaultKind.REPLACED_AFTER)
)
each_operation = pytest.mark.parametrize("name", OPERATIONS)


def lives(name: str) -> tuple[InstanceCommand, ...]:
    """The shortest life with this operation, ended by it or by a deletion."""
    if name in ("create_instance", "delete_instance"):
        return CREATE, DELETE
    try:
        active().execute(EXAMPLES[name], context())
    except Refusal:
        return CREATE, _allowing(name), EXAMPLES[name], DELETE
    return CREATE, EXAMPLES[name], DELETE


def _allowing(name: str) -> InstanceCommand:
    """An operation after which this one is allowed."""
    for other in EXAMPLES.values():
        instance = active()
        try:
            instance.execute(other, context())
            settle(instance)
            instance.execute(EXAMPLES[name], context())
        except Refusal:
            continue
        return other
    raise AssertionError(f"{name} is allowed after no other operation")


def _lived(name: str, drawn: Drawn, *, guest_fault: str | None = None, **given: Any) -> Site:
    """A life in which calls of this operation meet faults."""
    site = Site(build_time=3.0, verb_time=1.0)
    site.api.faults = Faults(drawn)

    def begins(command: InstanceCommand) -> None:
        drawn.listening = command.wire_name() == name
        site.agents.faults.draw = _once_each(guest_fault) if drawn.listening and guest_fault else None

    with directory() as path:
        run(life(site, lives(name), path, begins=begins, **given), VirtualLoop())
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
        ended = run(life(Site(), lives(name), path, begins=lambda _: None), VirtualLoop())
    assert ended.unanswered_until is None


def _changes(site: Site) -> list[str]:
    """What the cloud has carried out; of volumes only whether as many are gone as were made."""
    changes = sorted(f"{entry.action} {entry.kind}" for entry in site.api.ledger)
    surplus = changes.count("create volume") - 1
    for _ in range(surplus):
        changes.remove("create volume")
        changes.remove("delete volume")
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
    if name == "delete_instance" and "stop" not in verbs:
        verbs.append("stop")  # one short try was all it had
    assert set(verbs) == set(undisturbed)
    assert fault == GuestFaultKind.DIES_AFTER or sorted(verbs) == sorted(undisturbed)


def test_a_late_volume_is_made_twice_and_removed_before_the_create_ends() -> None:
    n = next(n for n, call, _ in _cells("create_instance") if call == "create_volume")
    site = _lived("create_instance", Drawn(n, FAULTS["takes_60_seconds"]))
    made = [entry.id for entry in site.api.ledger if (entry.action, entry.kind) == ("create", "volume")]
    assert len(made) == 2
