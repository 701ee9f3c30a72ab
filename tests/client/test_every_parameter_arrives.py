"""What a publisher says is what lies in the stream, in plain data and without a secret in it."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from aggregates.commands import COMMANDS
from engine.client import Context, InvalidCommand, Operation, SecretRef, TaskManager
from engine.client.sync import SyncTaskManager
from engine.messages import CommandEnvelope
from tests.client.responder import Responder
from tests.support.broker import Broker

INSTANCE = uuid4()


class NovaFlavor:
    """As the cloud's client gives it: data, and a manager that holds its session."""

    def __init__(self) -> None:
        self.id, self.name, self.manager = "7", "m1.small", object()

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "ram": 2048}


# For each parameter of the predecessor's create_instance: what is given, the wire's name, what must be there.
CREATE: dict[str, tuple[Any, str, Any]] = {
    "name": ("orders", "name", "orders"),
    "flavor": (NovaFlavor(), "flavor", "7"),
    "image_id": ("image-1", "image_id", "image-1"),
    "databases": ([{"_name": "shop", "_character_set": "utf8"}, "log"], "databases",
                  [{"name": "shop", "character_set": "utf8"}, {"name": "log"}]),
    "users": ([{"_name": "u", "_password": "clear", "_host": "%", "_databases": [{"_name": "shop"}],
                "_is_root": False}], "users",
              [{"name": "u", "password_ref": "vault:1", "host": "%", "databases": ["shop"]}]),
    "datastore_manager": ("postgresql", "datastore", "postgresql"),
    "packages": (["pg"], "packages", ["pg"]),
    "volume_size": (2, "volume_size", 2),
    "backup_id": (str(INSTANCE), "backup_id", str(INSTANCE)),
    "availability_zone": ("zone-b", "availability_zone", "zone-b"),
    "root_password": ("rooted", "root_password_ref", "vault:2"),
    "nics": ([{"net-id": "n", "v4-fixed-ip": ""}], "nics", ["n"]),
    "overrides": ({"max_connections": 7}, "overrides", {"max_connections": 7}),
    "slave_of_id": ("source", "slave_of_id", "source"),
    "cluster_config": ({"id": "c"}, "cluster_config", {"id": "c"}),
    "volume_type": ("fast", "volume_type", "fast"),
    "modules": ([{"id": "m"}], "modules", [{"id": "m"}]),
    "locality": ("affinity", "locality", "affinity"),
    "access": ({"is_public": False, "allowed_cidrs": ["10.0.0.0/8"]}, "access",
               {"public": False, "allowed_cidrs": ["10.0.0.0/8"]}),
    "ds_version": ("18", "datastore_version", "18"),
}  # fmt: skip
PREDECESSOR = [
    "instance_id", "name", "flavor", "image_id", "databases", "users", "datastore_manager", "packages", "volume_size",
    "backup_id", "availability_zone", "root_password", "nics", "overrides", "slave_of_id", "cluster_config",
    "volume_type", "modules", "locality", "access", "ds_version",
]  # fmt: skip


def test_create_instance_takes_the_predecessors_parameters_in_their_order() -> None:
    parameters = inspect.signature(TaskManager.create_instance).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:] == PREDECESSOR
    assert set(PREDECESSOR) - {"instance_id"} == CREATE.keys()


async def test_every_parameter_of_create_instance_is_on_the_wire(manager: TaskManager, responder: Responder) -> None:
    given = {name: value for name, (value, _, _) in CREATE.items()}
    handle = await manager.create_instance(INSTANCE, **given, region="two", keep_on_failure=True)
    await responder.wait_for(lambda: bool(responder.commands))
    subject, body, headers = responder.commands[0]
    assert subject == f"holdfast.v1.cmd.acme.instance.{INSTANCE}.create_instance"
    assert body["args"] == {wire: expected for _, wire, expected in CREATE.values()} | {
        "region": "two",
        "keep_on_failure": True,
    }
    assert (body["command_id"], body["actor"]) == (handle.id, "alice")
    assert headers["Nats-Msg-Id"].startswith(f"acme:{handle.id}:")
    assert responder.secrets == ["clear", "rooted"]
    assert "clear" not in str(body)
    assert "rooted" not in str(body)


@pytest.mark.parametrize(
    ("call", "args", "wire"),
    [
        ("delete_instance", (), {}),
        ("reboot", (), {}),
        ("restart", (), {}),
        ("resize_volume", (4,), {"new_size": 4}),
        ("resize_flavor", ({"id": 1}, SimpleNamespace(id="9", name="big", manager=object())), {"flavor": "9"}),
        ("migrate", ("host-2",), {"host": "host-2"}),
        ("migrate", (), {}),
        ("rebuild", (), {}),
        ("rebuild", ("image-1",), {"image_id": "image-1"}),
        ("update_access", ({"is_public": True},), {"public": True}),
        ("update_access", ({"allowed_cidrs": []},), {"allowed_cidrs": []}),
        ("stop_instance", (), {}),
        ("start_instance", (), {}),
    ],
)
async def test_each_command_arrives_as_the_engine_decodes_it(
    manager: TaskManager, responder: Responder, call: str, args: tuple[Any, ...], wire: dict[str, Any]
) -> None:
    await getattr(manager, call)(str(INSTANCE), *args)
    await responder.wait_for(lambda: bool(responder.commands))
    subject, body, _ = responder.commands[0]
    assert subject.endswith(f".instance.{INSTANCE}.{call}")
    assert body["args"] == wire
    envelope = msgspec.convert(body, CommandEnvelope)
    msgspec.convert(envelope.args, COMMANDS["instance", call])


@pytest.mark.parametrize(
    ("call", "more", "wire"),
    [
        ("cancel_operation", {"reason": "by mistake"}, {"reason": "by mistake"}),
        ("retry_operation", {}, {}),
        ("skip_step", {"facts": {"port": 5432}}, {"facts": {"port": 5432}}),
        ("skip_step", {"facts": {}, "reason": "by hand"}, {"facts": {}, "reason": "by hand"}),
        ("abandon_operation", {"reason": "enough"}, {"reason": "enough"}),
    ],
)
async def test_a_command_about_an_operation_goes_to_the_instance_that_it_runs_on(
    manager: TaskManager, responder: Responder, call: str, more: dict[str, Any], wire: dict[str, Any]
) -> None:
    operation_id = str(uuid4())
    responder.answers["operations", "get"] = lambda q: {"id": q["operation_id"], "instance_id": str(INSTANCE)}
    await getattr(manager, call)(operation_id, **more)
    await getattr(manager, call)(operation_id, **more, instance_id=INSTANCE)
    await responder.wait_for(lambda: len(responder.commands) == 2)
    assert responder.questions == [("operations.get", {"operation_id": operation_id})]
    for subject, body, _ in responder.commands:
        assert subject.endswith(f".instance.{INSTANCE}.{call}")
        assert body["args"] == {"operation_id": operation_id, **wire}
        msgspec.convert(body["args"], COMMANDS["instance", call])


async def test_what_is_not_asked_for_is_not_sent(manager: TaskManager, responder: Responder) -> None:
    await manager.create_instance(INSTANCE, "a", "small", None, [], [], "redis", None, 1)
    await responder.wait_for(lambda: bool(responder.commands))
    assert responder.commands[0][1]["args"] == {
        "name": "a", "flavor": "small", "databases": [], "users": [], "datastore": "redis", "volume_size": 1,
        "keep_on_failure": False,
    }  # fmt: skip


async def test_the_context_and_the_options_are_in_the_envelope(broker: Broker, responder: Responder) -> None:
    deadline, trace = datetime(2030, 1, 1, tzinfo=UTC), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    request = SimpleNamespace(project_id="acme", user_id="bob", deadline=deadline, traceparent=trace)
    async with TaskManager(request, broker=broker.url) as client:
        await client.restart(INSTANCE, expected_version=7)
    await responder.wait_for(lambda: bool(responder.commands))
    body = msgspec.convert(responder.commands[0][1], CommandEnvelope)
    assert (body.actor, body.deadline, body.traceparent, body.expected_version) == ("bob", deadline, trace, 7)


async def test_one_command_sent_twice_is_one_message(manager: TaskManager, responder: Responder) -> None:
    command_id, issued_at = uuid4(), datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):
        handle = await manager.create_instance(
            INSTANCE, "a", "small", None, [], [], "redis", None, 1, root_password=SecretRef("vault:x"),
            command_id=command_id, issued_at=issued_at,
        )  # fmt: skip
    assert UUID(handle.id) == command_id
    await responder.wait_for(lambda: len(responder.commands) == 2)
    first, second = responder.commands
    assert first[:2] == second[:2]
    assert first[2]["Nats-Msg-Id"] == second[2]["Nats-Msg-Id"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"instance_id": "no-uuid"}, "invalid_argument"),
        ({"instance_id": [str(INSTANCE)]}, "unsupported"),
        ({"flavor": object()}, "invalid_argument"),
        ({"volume_size": "2"}, "invalid_argument"),
        ({"databases": "shop"}, "invalid_argument"),
        ({"users": [{"password": "x"}]}, "invalid_argument"),
        ({"nics": [object()]}, "invalid_argument"),
        ({"root_password": 5}, "invalid_argument"),
        ({"overrides": {"a": "x" * 300_000}}, "too_large"),
    ],
)
async def test_what_cannot_be_a_command_is_told_before_anything_is_sent(
    manager: TaskManager, responder: Responder, change: dict[str, Any], code: str
) -> None:
    given: dict[str, Any] = {
        "instance_id": INSTANCE, "name": "a", "flavor": "small", "image_id": None, "databases": [], "users": [],
        "datastore_manager": "redis", "packages": None, "volume_size": 1,
    }  # fmt: skip
    with pytest.raises(InvalidCommand) as caught:
        await manager.create_instance(**given | change)
    assert caught.value.code == code
    assert responder.commands == []


@pytest.mark.parametrize("source", [SimpleNamespace(project="a.b", user="u"), SimpleNamespace(project="a"), object()])
def test_a_context_without_project_or_actor_is_refused(source: Any) -> None:
    with pytest.raises(InvalidCommand):
        TaskManager(source)


def test_our_own_context_is_taken_as_it_is() -> None:
    context = Context(project="acme", actor="alice")
    assert TaskManager(context).context == context


@pytest.mark.parametrize(
    ("nic", "code"),
    [({"v4-fixed-ip": "10.0.0.7", "net-id": "n"}, "unsupported"), ({}, "invalid_argument"), (7, "invalid_argument")],
    ids=str,
)
async def test_a_nic_that_says_more_than_a_network_or_none_is_refused_before_it_is_sent(
    manager: TaskManager, nic: Any, code: str
) -> None:
    given = {name: value for name, (value, _, _) in CREATE.items()}
    with pytest.raises(InvalidCommand) as raised:
        await manager.create_instance(INSTANCE, **{**given, "nics": [nic]})
    assert raised.value.code == code


def test_the_client_for_scripts_has_every_command() -> None:
    commands = {
        name
        for name, method in inspect.getmembers(TaskManager, inspect.iscoroutinefunction)
        if not name.startswith("_") and inspect.get_annotations(method, eval_str=True)["return"] is Operation
    }
    assert {"create_instance", "set_quota", "abandon_operation"} < commands
    assert {name for name in commands if not hasattr(SyncTaskManager, name)} == set()
