"""What a look at the cloud shows of an instance: what is surplus, and what never is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.base import Refusal
from aggregates.instance import Instance
from aggregates.observation import adopt, disown, drift, look, note, note_removed, note_surplus, orphans, surplus
from aggregates.resources import Resource, ResourceKind, instance_named, resource_name
from tests.support.given import (
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    everywhere,
    fail,
    intervention,
    keeping,
    park,
    requested,
    requested_fully,
    settle,
    started,
)

SERVER, PORT, VOLUME = ResourceKind.SERVER, ResourceKind.PORT, ResourceKind.VOLUME
ADDRESS = ResourceKind.FLOATING_ADDRESS
# As they are made.
IDS = {
    SERVER: "server-1",
    ADDRESS: "address-1",
    PORT: "port-1",
    ResourceKind.MANAGEMENT_PORT: "port-2",
    ResourceKind.SNAPSHOT: "snapshot-1",
    VOLUME: "volume-1",
    ResourceKind.SECURITY_GROUP: "security-group-1",
    ResourceKind.SERVER_GROUP: "server-group-1",
}


def seen(instance: Instance, kind: ResourceKind, resource_id: str, **given: Any) -> Resource:
    return Resource(kind=kind, id=resource_id, **{"name": resource_name(instance.id, kind), **given})


def own(instance: Instance, **changed: dict[str, Any]) -> list[Resource]:
    """What a cloud shows that agrees, but for what is changed of a kind."""
    shown: dict[ResourceKind, dict[str, Any]] = {
        SERVER: {"status": instance.state, "flavor_id": instance.flavor.id, "host": instance.host},
        PORT: {"server_id": "server-1"},
        ADDRESS: {"port_id": "port-1"},
        VOLUME: {"status": "in-use", "size": instance.volume_size, "server_id": "server-1"},
    }
    return [
        seen(instance, kind, IDS[kind], **{**shown.get(kind, {}), **changed.get(kind, {})}) for kind in ResourceKind
    ]


def whole() -> Instance:
    """One that has something of each kind."""
    instance = requested_fully()
    settle(instance)
    keeping(instance)
    assert {kind: instance.held(kind) for kind in ResourceKind} == IDS
    return instance


def deleted() -> Instance:
    instance = started("delete_instance")
    settle(instance)
    return instance


@pytest.mark.parametrize("kind", ResourceKind)
def test_of_two_of_a_name_the_one_that_is_not_recorded_is_surplus(kind: ResourceKind) -> None:
    instance = whole()
    second = seen(instance, kind, "second")
    assert surplus(instance, [second, *own(instance)]) == (second,)


@pytest.mark.parametrize("state", [state for state, each in everywhere().items() if each.operation is None])
def test_what_is_recorded_is_surplus_only_when_the_instance_has_nothing(state: str) -> None:
    instance = everywhere()[state]
    found = surplus(instance, own(instance))
    assert [each.kind for each in found] == (list(ResourceKind) if state in ("FAILED", "DELETED") else [])


@pytest.mark.parametrize("state", [state for state, each in everywhere().items() if each.operation is not None])
def test_while_an_operation_runs_nothing_is_surplus(state: str) -> None:
    instance = everywhere()[state]
    assert surplus(instance, [*own(instance), seen(instance, VOLUME, "second")]) == ()


def test_the_only_one_of_its_kind_is_not_surplus_though_another_is_recorded() -> None:
    instance = active()
    assert surplus(instance, [seen(instance, VOLUME, "second"), seen(instance, SERVER, "server-1")]) == ()


def test_what_a_failed_create_has_kept_without_recording_it_is_not_surplus() -> None:
    instance = advance(requested(keep_on_failure=True), "build_server")
    fail(instance)
    assert instance.state == "ERROR"
    assert surplus(instance, [seen(instance, SERVER, "late"), seen(instance, PORT, "port-1")]) == ()


@pytest.mark.parametrize("name", ["holdfast-sg-{0}", "holdfast-{0} ", "{0}", "holdfast-{1}"])
def test_nothing_of_another_name_is_surplus_whatever_its_tag_says(name: str) -> None:
    instance = deleted()
    stranger = Resource(kind=VOLUME, id="x", name=name.format(instance.id, uuid4()), instance_id=instance.id)
    assert surplus(instance, [stranger]) == ()


def test_servers_go_first_and_what_is_on_its_way_out_is_left_to_itself() -> None:
    instance = deleted()
    shown = [seen(instance, VOLUME, "v"), seen(instance, PORT, "p"), seen(instance, SERVER, "s")]
    shown.append(seen(instance, VOLUME, "w", status="deleting"))
    assert [each.id for each in surplus(instance, shown)] == ["s", "p", "v"]


def test_what_somebody_had_left_there_stays_until_a_delete_is_asked_for() -> None:
    instance = advance(requested(), "build_server")
    fail(instance)
    advance(instance, "undo_build_volume")
    instance.execute(intervention(park(instance), "skip_step"), context())
    settle(instance)
    assert instance.state == "FAILED"
    assert [each.kind for each in surplus(instance, own(instance))] == [
        kind for kind in ResourceKind if kind is not VOLUME
    ]
    instance.execute(EXAMPLES["delete_instance"], context())
    settle(instance)
    assert [each.kind for each in surplus(instance, own(instance))] == list(ResourceKind)


@pytest.mark.parametrize("instance", [active(), deleted()], ids=["ACTIVE", "DELETED"])
def test_what_is_found_is_remembered_until_it_is_gone_and_changes_nothing_else(instance: Instance) -> None:
    before = (instance.state, instance.entered, instance.operation, instance.version)
    first, second = seen(instance, VOLUME, "a"), seen(instance, VOLUME, "b")
    for _ in range(2):
        note_surplus(instance, first, at=NOON)
    note_surplus(instance, second, at=NOON)
    assert [each.id for each in instance.surplus] == ["a", "b"]
    for _ in range(2):
        note_removed(instance, first, at=NOON)
    assert [each.id for each in instance.surplus] == ["b"]
    assert (instance.state, instance.entered, instance.operation, instance.version - 3) == before


def test_a_name_tells_its_instance_and_no_other_name_does() -> None:
    instance_id = UUID("0a" * 16)
    for kind in ResourceKind:
        assert instance_named(resource_name(instance_id, kind), kind) == instance_id
    others = (f"holdfast-{str(instance_id).upper()}", f"holdfast-{instance_id.hex}", str(instance_id), "holdfast-")
    assert [instance_named(other) for other in others] == [None] * 4


# --- drift --------------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "stopped": ({"server": {"status": "SHUTOFF"}}, "server server-1 has status SHUTOFF, not ACTIVE"),
    "broken": ({"server": {"status": "ERROR"}}, "server server-1 has status ERROR, not ACTIVE"),
    "resized": ({"server": {"flavor_id": "large"}}, "server server-1 has flavor large, not small"),
    "moved": ({"server": {"host": "host-2"}}, "server server-1 has host host-2, not host-1"),
    "grown": ({"volume": {"size": 7}}, "volume volume-1 has size 7, not 1"),
    "detached": ({"volume": {"server_id": None}}, "volume volume-1 is attached to no server, not to server-1"),
    "taken": ({"volume": {"server_id": "thief"}}, "volume volume-1 is attached to thief, not to server-1"),
    "going": ({"volume": {"status": "deleting"}}, "volume volume-1 has status deleting"),
}


def told(instance: Instance) -> list[str]:
    return [str(each) for each in instance.drift]


def looked(instance: Instance, *shown: list[Resource]) -> None:
    """So many looks in a row, each noted."""
    before = None
    for each in shown:
        now = look(instance, each)
        if now is not None:
            note(instance, before, now, at=NOON)
        before = now


@pytest.mark.parametrize("name", CHANGES)
def test_what_somebody_has_changed_is_told(name: str) -> None:
    instance = active()
    changed, says = CHANGES[name]
    assert [str(each) for each in drift(instance, own(instance, **changed))] == [says]


@pytest.mark.parametrize(("seen", "says"), [("port-9", "port-9"), (None, "no port")])
def test_an_address_that_leads_elsewhere_is_told_while_the_port_is_there(seen: str | None, says: str) -> None:
    instance = whole()
    assert [str(each) for each in drift(instance, own(instance, floating_address={"port_id": seen}))] == [
        f"floating address address-1 leads to {says}, not to port-1"
    ]
    assert drift(instance, own(instance)) == ()


def test_of_an_instance_without_an_address_nothing_is_told_of_one() -> None:
    instance = active()
    assert instance.held(ADDRESS) is None
    assert drift(instance, own(instance, floating_address={"port_id": "port-9"})) == ()


@pytest.mark.parametrize("kind", ResourceKind)
def test_what_is_gone_is_told(kind: ResourceKind) -> None:
    instance = whole()
    shown = [each for each in own(instance) if each.kind is not kind]
    assert f"{kind.spoken} {IDS[kind]} is not there" in [str(each) for each in drift(instance, shown)]


@pytest.mark.parametrize("state", sorted(everywhere()))
def test_where_all_is_as_believed_nothing_differs_and_of_what_runs_nothing_is_told(state: str) -> None:
    instance = everywhere()[state]
    assert drift(instance, own(instance)) == ()
    if instance.operation is not None or state in ("FAILED", "DELETED"):
        assert drift(instance, []) == ()
        assert look(instance, []) is None or instance.operation is None


def test_what_the_cloud_does_not_tell_does_not_differ() -> None:
    instance = active()
    untold = {"server": {"flavor_id": None, "host": None}, "volume": {"size": None}}
    assert drift(instance, own(instance, **untold)) == ()


def test_what_an_abandoned_delete_has_removed_is_not_missed() -> None:
    instance = whole()
    instance.execute(EXAMPLES["delete_instance"], context())
    park(advance(instance, "delete_credentials"))
    instance.execute(intervention(instance, "abandon_operation"), context())
    assert instance.state == "ERROR"
    assert drift(instance, []) == ()


def test_only_what_two_looks_in_a_row_agree_about_is_noted_and_only_when_it_changes() -> None:
    instance = active()
    fine, off = own(instance), own(instance, server={"status": "SHUTOFF"})
    broken = own(instance, server={"status": "ERROR"})
    looked(instance, off, fine, off, fine)
    assert told(instance) == []
    looked(instance, off, off, off, fine, off)
    assert told(instance) == ["server server-1 has status SHUTOFF, not ACTIVE"]
    version = instance.version
    looked(instance, off, broken, off, broken)
    assert instance.version == version
    looked(instance, broken, broken)
    assert told(instance) == ["server server-1 has status ERROR, not ACTIVE"]
    looked(instance, fine, fine)
    assert told(instance) == []
    assert instance.version == version + 2


def test_looks_before_and_after_an_operation_are_not_two_in_a_row() -> None:
    instance = active()
    before = look(instance, [])
    instance.execute(EXAMPLES["restart"], context())
    settle(instance)
    now = look(instance, [])
    assert now is not None
    note(instance, before, now, at=NOON)
    assert told(instance) == []


def test_what_is_deleted_shows_no_drift() -> None:
    instance = active()
    looked(instance, [], [])
    assert len(told(instance)) == sum(instance.held(kind) is not None for kind in ResourceKind)
    instance.execute(EXAMPLES["delete_instance"], context())
    settle(instance)
    assert told(instance) == []


# --- orphans ------------------------------------------------------------------------------------------------------


def test_an_orphan_is_what_is_neither_its_own_nor_removed_as_surplus() -> None:
    instance = whole()
    shown = [seen(instance, VOLUME, "only one left"), *(each for each in own(instance) if each.kind is not VOLUME)]
    shown.append(seen(instance, VOLUME, "marked", name="another name"))
    assert [each.id for each in orphans(instance, shown)] == ["only one left", "marked"]
    shown.extend(own(instance))
    assert [each.id for each in orphans(instance, shown)] == ["marked"]
    note_surplus(instance, shown[0], at=NOON)
    assert [each.id for each in orphans(instance, [shown[0]])] == []


def test_of_a_running_operation_nothing_is_an_orphan() -> None:
    instance = advance(requested(), "build_server")
    assert orphans(instance, [seen(instance, VOLUME, "other")]) == ()
    with pytest.raises(Refusal, match="is running") as raised:
        disown(instance, seen(instance, VOLUME, "other"), actor="bob", at=NOON)
    assert raised.value.code == "conflict"


@pytest.mark.parametrize("kind", ResourceKind)
def test_what_is_its_own_is_not_disowned(kind: ResourceKind) -> None:
    instance = whole()
    with pytest.raises(Refusal, match="'s own, which is ACTIVE") as raised:
        disown(instance, seen(instance, kind, IDS[kind]), actor="bob", at=NOON)
    assert raised.value.code == "forbidden_state"
    assert instance.surplus == ()


def test_what_somebody_had_left_there_is_an_orphan_and_is_disowned_once() -> None:
    instance = park(advance(started("delete_instance"), "delete_volume"))
    instance.execute(intervention(instance, "skip_step"), context())
    settle(instance)
    volume = seen(instance, VOLUME, "volume-1")
    assert orphans(instance, [volume]) == (volume,)
    for _ in range(2):
        disown(instance, volume, actor="bob", at=NOON)
    assert [each.id for each in instance.surplus] == ["volume-1"]
    assert orphans(instance, [volume]) == ()


def test_what_is_left_of_what_was_lost_is_adopted_once_and_drift_of_it_is_over() -> None:
    instance = whole()
    lost = [each for each in own(instance) if each.kind is not VOLUME]
    looked(instance, lost, lost)
    assert told(instance) == ["volume volume-1 is not there"]
    other = seen(instance, VOLUME, "volume-9", size=1, server_id="server-1")
    for _ in range(2):
        adopt(instance, other, [*lost, other], actor="bob", at=NOON)
    assert (instance.volume_id, told(instance)) == ("volume-9", [])
    assert (surplus(instance, [*lost, other]), orphans(instance, [*lost, other])) == ((), ())
    assert drift(instance, [*lost, other]) == ()
    instance.execute(EXAMPLES["delete_instance"], context())
    settle(instance)
    assert [each.id for each in surplus(instance, [other])] == ["volume-9"]


def test_an_adopted_server_is_where_it_is() -> None:
    instance = whole()
    adopt(instance, seen(instance, SERVER, "server-9", host="host-9"), [], actor="bob", at=NOON)
    assert (instance.server_id, instance.host) == ("server-9", "host-9")


NOT_ADOPTED: dict[str, tuple[Callable[[Instance], Resource], str]] = {
    "a second one": (lambda i: seen(i, VOLUME, "volume-9"), "volume volume-1 is, and is there"),
    "of another name": (lambda i: seen(i, VOLUME, "volume-9", name="backup"), "it is named backup; name it holdfast-"),
    "with an address": (lambda i: seen(i, PORT, "port-9"), "at which address"),
}


@pytest.mark.parametrize("what", NOT_ADOPTED)
def test_what_cannot_be_its_own_is_not_adopted(what: str) -> None:
    instance = whole()
    makes, why = NOT_ADOPTED[what]
    with pytest.raises(Refusal, match=why) as raised:
        adopt(instance, makes(instance), own(instance), actor="bob", at=NOON)
    assert raised.value.code == "forbidden_state"
    assert instance.version == whole().version


def test_nothing_is_adopted_by_what_has_nothing_or_changes_or_while_it_is_removed() -> None:
    for instance, code in ((deleted(), "forbidden_state"), (started("restart"), "conflict")):
        with pytest.raises(Refusal) as raised:
            adopt(instance, seen(instance, VOLUME, "volume-9"), [], actor="bob", at=NOON)
        assert raised.value.code == code
    instance = whole()
    other = seen(instance, VOLUME, "volume-9")
    disown(instance, other, actor="bob", at=NOON)
    with pytest.raises(Refusal, match="being removed"):
        adopt(instance, other, [other], actor="bob", at=NOON)
