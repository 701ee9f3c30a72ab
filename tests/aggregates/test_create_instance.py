"""create_instance: what is accepted, what it records, and what is refused with which code."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from aggregates.arguments import OPTIONAL, RESERVED_USERS
from aggregates.base import Refusal
from aggregates.catalogue import Datastore
from aggregates.commands import CreateInstance
from aggregates.effects import Access, Database, PrepareDatabase, SendCommand, User
from aggregates.instance import Instance
from aggregates.obligations import quota_id
from tests.aggregates.story import given, names, refused
from tests.support.given import BARE, CATALOGUE, MANAGED, NOON, active, context, pay, requested, requested_fully, settle

SMALLEST: dict[str, Any] = {"name": "orders", "flavor": "small", "datastore": "postgresql", "volume_size": 1}


def create(catalogue: Any = CATALOGUE, **arguments: Any) -> Instance:
    return Instance.create(uuid4(), CreateInstance(**{**SMALLEST, **arguments}), context(catalogue=catalogue))


def refusal(catalogue: Any = CATALOGUE, **arguments: Any) -> Refusal:
    with pytest.raises(Refusal) as raised:
        create(catalogue, **arguments)
    return raised.value


def test_a_created_instance_is_in_build_and_owes_its_quota() -> None:
    instance = requested()
    owed = instance.owes()
    assert names(instance) == ["InstanceRequested"]
    assert (instance.status, instance.state) == ("BUILD", "build_quota")
    assert owed is not None
    assert owed.effect == SendCommand(
        project="acme",
        kind="quota",
        aggregate_id=quota_id("acme"),
        command="reserve_quota",
        args={"instance_id": str(instance.id), "ram": 512, "volumes": 1, "as_of": 1},
    )


def test_the_first_event_says_whose_it_is_and_which_partition_serves_it() -> None:
    event: Any = requested().collect_events()[0]
    assert (event.project, event.partition, event.originator_version) == ("acme", 7, 1)


def test_the_operation_bears_the_id_actor_and_command_that_began_it() -> None:
    command_id = uuid4()
    instance = Instance.create(uuid4(), CreateInstance(**SMALLEST), context(command_id, actor="bob"))
    operation = instance.operation
    assert operation is not None
    assert (operation.id, operation.actor, operation.command) == (command_id, "bob", "create_instance")


def test_an_operation_without_a_deadline_has_its_commands_default() -> None:
    operation = requested().operation
    assert operation is not None
    assert operation.deadline == NOON + CreateInstance.limit


def test_a_commands_deadline_is_its_operations_deadline() -> None:
    soon = NOON + timedelta(minutes=3)
    operation = Instance.create(uuid4(), CreateInstance(**SMALLEST), context(deadline=soon)).operation
    assert operation is not None
    assert operation.deadline == soon


def test_a_flavor_is_found_by_id_or_by_name() -> None:
    flavor = msgspec.structs.replace(CATALOGUE.flavors[0], id="4711", name="tiny")
    catalogue = msgspec.structs.replace(CATALOGUE, flavors=(flavor,))
    assert create(catalogue, flavor="4711").flavor == create(catalogue, flavor="tiny").flavor == flavor


def test_the_newest_version_is_installed_when_none_is_named() -> None:
    assert create().datastore_version == "18"
    assert create(datastore_version="16").datastore_version == "16"


def test_every_argument_reaches_the_guest() -> None:
    databases = (Database(name="shop", character_set="UTF8", collate="C"),)
    users = (User(name="ann", password_ref="ref-1", host="10.%", databases=("shop",)),)
    instance = active(databases=databases, users=users, root_password_ref="ref-2", overrides={"work_mem": "8MB"})
    given_facts = given(instance)
    effect = given_facts.owing["build_database"].effect(given_facts)
    assert effect == PrepareDatabase(
        instance_id=instance.id,
        project="acme",
        datastore="postgresql",
        datastore_version="18",
        ram=512,
        volume_size=1,
        databases=databases,
        users=users,
        root_password_ref="ref-2",
        overrides={"work_mem": "8MB"},
    )


@pytest.mark.parametrize(("value", "text"), [(True, "on"), (False, "off"), (8, "8"), (0.5, "0.5"), ("8MB", "8MB")])
def test_an_override_is_recorded_as_text(value: Any, text: str) -> None:
    assert create(overrides={"work_mem": value}).overrides == {"work_mem": text}


@pytest.mark.parametrize("argument", OPTIONAL)
@pytest.mark.parametrize("value", ["anything", ["one"], {"a": 1}, False], ids=str)
def test_an_argument_that_the_cloud_does_not_honour_is_refused_by_name(argument: str, value: Any) -> None:
    refused_with = refusal(BARE, **{argument: value})
    assert refused_with.code == "unsupported"
    assert argument in refused_with.message


@pytest.mark.parametrize("argument", OPTIONAL)
@pytest.mark.parametrize("value", ["", [], {}], ids=repr)
def test_an_empty_value_asks_for_nothing_as_with_the_predecessor(argument: str, value: Any) -> None:
    assert create(**{argument: value}).state == "build_quota"


def test_every_argument_of_the_command_is_recorded_or_one_that_a_cloud_must_honour() -> None:
    recorded = set(vars(requested()))
    assert set(CreateInstance.__struct_fields__) - recorded <= set(OPTIONAL)
    assert recorded >= CATALOGUE.honours


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        ("invalid_argument", {"flavor": "huge"}, "no flavor huge; there are: small, large"),
        ("invalid_argument", {"datastore": "oracle"}, "no datastore oracle; there are: postgresql, redis"),
        ("invalid_argument", {"datastore_version": "9.6"}, "there are: 16, 18"),
        ("invalid_argument", {"volume_size": 1025}, "at most 1024 GiB"),
        ("invalid_argument", {"volume_type": "ssd"}, "no volume_type ssd; there are: local"),
        ("invalid_argument", {"availability_zone": "mars"}, "no availability_zone mars; there are: az-1, az-2"),
        (
            "invalid_argument",
            {"overrides": {"fsync": "off"}},
            "overrides may not set fsync; postgresql takes: work_mem",
        ),
        ("invalid_argument", {"overrides": {"work_mem": "1\nfsync=off"}}, "override work_mem"),
        ("invalid_argument", {"overrides": {"work_mem": "'; DROP"}}, "override work_mem"),
        ("invalid_argument", {"overrides": {"work_mem": ""}}, "override work_mem"),
        ("invalid_argument", {"databases": (Database(name='a"b'),)}, "use letters, digits and _"),
        ("invalid_argument", {"databases": (Database(name="x" * 64),)}, "at most 63"),
        ("invalid_argument", {"databases": (Database(name="a"), Database(name="a"))}, "a database is named twice"),
        ("invalid_argument", {"users": (User(name="1st", password_ref="r"),)}, "user name '1st'"),
        (
            "invalid_argument",
            {"users": (User(name="a", password_ref="r"), User(name="a", password_ref="s"))},
            "a user is named twice",
        ),
        (
            "invalid_argument",
            {"users": (User(name="a", password_ref="r", databases=("b",)),)},
            "user a wants databases that are not made: ['b']",
        ),
        ("invalid_argument", {"databases": (Database(name="Postgres"),)}, "Postgres is reserved"),
        ("invalid_argument", {"databases": (Database(name="a", collate="C'; --"),)}, "is no such name"),
        ("invalid_argument", {"users": (User(name="a", password_ref="r", host="x y"),)}, "no address or pattern"),
        ("unsupported", {"datastore": "redis", "databases": (Database(name="a"),)}, "redis has no databases"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused_with_what_is_allowed(
    code: str, arguments: dict[str, Any], words: str
) -> None:
    refused_with = refusal(**arguments)
    assert refused_with.code == code
    assert words in refused_with.message


def test_users_are_refused_where_the_datastore_has_none() -> None:
    without = Datastore(manager="plain", port=5432, versions=("1",), parameters=frozenset(), has_users=False)
    catalogue = msgspec.structs.replace(CATALOGUE, datastores=(without,))
    refused_with = refusal(catalogue, datastore="plain", users=(User(name="a", password_ref="r"),))
    assert refused_with.code == "unsupported"


@pytest.mark.parametrize("name", [*sorted(RESERVED_USERS - {"mysql", "mariadb.sys"}), "ROOT", "Postgres"])
def test_a_user_of_the_datastore_or_the_agent_is_reserved(name: str) -> None:
    assert refusal(users=(User(name=name, password_ref="r"),)).code == "invalid_argument"


def test_an_id_is_created_once() -> None:
    refused_with = refused(given(active()), CreateInstance(**SMALLEST))
    assert refused_with.code == "conflict"
    assert "exists" in refused_with.message


@pytest.mark.parametrize(
    "arguments",
    [
        {"volume_size": 0},
        {"volume_size": "1"},
        {"volume_size": 65537},
        {"name": ""},
        {"name": "x" * 256},
        {"flavor": None},
        {"surprise": 1},
        {"users": [{"name": "a", "password": "clear"}]},
        {"databases": ["shop"]},
    ],
    ids=str,
)
def test_a_wrong_type_or_an_unknown_argument_is_found_while_decoding(arguments: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**SMALLEST, **arguments}, CreateInstance)


# --- access, networks, locality -----------------------------------------------------------------------------------


def test_where_access_is_honoured_an_instance_that_says_nothing_of_it_is_private_and_open_to_all_who_reach_it() -> None:
    assert create().access == Access(public=False, allowed_cidrs=("0.0.0.0/0",))
    assert create(BARE).access is None


@pytest.mark.parametrize(
    ("given_cidrs", "recorded"),
    [
        (("10.0.0.0/8", "10.0.0.0/8"), ("10.0.0.0/8",)),
        (("192.0.2.7",), ("192.0.2.7/32",)),
        (("2001:DB8::/32",), ("2001:db8::/32",)),
        ((), ()),
    ],
    ids=str,
)
def test_networks_are_recorded_once_and_in_their_usual_form(
    given_cidrs: tuple[str, ...], recorded: tuple[str, ...]
) -> None:
    access = create(access=Access(allowed_cidrs=given_cidrs)).access
    assert access is not None
    assert access.allowed_cidrs == recorded


@pytest.mark.parametrize(
    ("cidrs", "words"),
    [
        (("everywhere",), "'everywhere' is no network; write one as 192.0.2.0/24"),
        (("10.1.2.3/8",), "10.1.2.3/8 names a host; write 10.0.0.0/8 for its network"),
        (tuple(f"10.0.{n}.0/24" for n in range(65)), "allowed_cidrs may be 64 at most, not 65"),
    ],
    ids=["no network", "a host's bits", "too many"],
)
def test_what_is_no_network_is_refused_and_never_widened(cidrs: tuple[str, ...], words: str) -> None:
    refused_with = refusal(access=Access(allowed_cidrs=cidrs))
    assert refused_with.code == "invalid_argument"
    assert words in refused_with.message


def test_an_instance_lies_on_one_tenants_network() -> None:
    assert create(nics=("network-1",)).nics == ("network-1",)
    assert refusal(nics=("network-1", "network-2")).code == "unsupported"


def test_all_that_an_instance_asks_for_reaches_the_cloud() -> None:
    instance = requested_fully()
    effects = {}
    while (owed := instance.owes()) is not None:
        effects[instance.state] = owed.effect
        pay(instance)
    group: Any = effects["build_server_group"]
    rules: Any = effects["build_rules"]
    port: Any = effects["build_port"]
    management: Any = effects["build_management_port"]
    server: Any = effects["build_server"]
    address: Any = effects["build_address"]
    assert (group.name, group.policy) == (instance.resource_name, "anti-affinity")
    assert (rules.security_group_id, rules.port, rules.cidrs) == ("security-group-1", 5432, ("192.0.2.0/24",))
    assert (port.network, port.security_group_id) == ("tenant-2", "security-group-1")
    assert (management.name, management.network) == (f"holdfast-mgmt-{instance.id}", "management")
    assert (server.management_port_id, server.server_group_id) == ("port-2", "server-group-1")
    assert server.image_id == "image-1"
    assert address.port_id == "port-1"
    assert given(instance).public_address == "203.0.113.7"


@pytest.mark.parametrize(
    ("catalogue", "arguments", "passed"),
    [
        (BARE, {}, set()),
        (CATALOGUE, {}, {"build_security_group", "build_rules"}),
        (CATALOGUE, {"access": Access(allowed_cidrs=())}, {"build_security_group"}),
        (CATALOGUE, {"access": Access(public=True)}, {"build_security_group", "build_rules", "build_address"}),
        (BARE, {"locality": ""}, set()),
        (MANAGED, {"locality": "affinity"}, {
            "build_server_group", "build_security_group", "build_rules", "build_management_port",
        }),
    ],
    ids=["bare", "guarded", "nobody let in", "public", "nothing asked for", "together"],
)  # fmt: skip
def test_only_what_is_wanted_is_planned_and_passed(catalogue: Any, arguments: dict[str, Any], passed: set[str]) -> None:
    instance = create(catalogue, **arguments)
    operation = instance.operation
    assert operation is not None
    plain = create(BARE).operation
    assert plain is not None
    assert set(operation.plan) - set(plain.plan) == passed
    assert tuple(settle(instance)) == operation.plan
