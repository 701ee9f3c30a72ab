"""The task manager as publishers see it: one method for each command, with the predecessor's names and parameters.

Guarantees that a returned `Operation` stands for a command that the broker has stored durably, with every argument
that was given. It decides nothing: whether the engine takes the command is told by `Operation.accepted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self, TypedDict, Unpack
from uuid import UUID, uuid4

import msgspec

from aggregates.obligations import quota_id
from engine.broker import BrokerSettings
from engine.client.arguments import (
    SecretRef,
    access_of,
    databases,
    flavor_reference,
    identifier,
    networks,
    present,
    users,
)
from engine.client.connection import DEFAULT_URL, Connection
from engine.client.context import Context, context_from
from engine.client.errors import (
    ClientError,
    InvalidCommand,
    NotPublished,
    OperationCancelled,
    OperationFailed,
    QueryFailed,
    Rejected,
    TimedOut,
    Unreachable,
)
from engine.client.operation import Operation, Progress, Result
from engine.client.queries import Queries
from engine.clock import utc_now
from engine.messages import MAX_BODY, MSG_ID, REPLY_TO, CommandEnvelope, CommandSubject, message_id, query_subject

__all__ = [
    "BrokerSettings",
    "ClientError",
    "Connection",
    "Context",
    "InvalidCommand",
    "NotPublished",
    "Operation",
    "OperationCancelled",
    "OperationFailed",
    "Options",
    "Progress",
    "Queries",
    "QueryFailed",
    "Rejected",
    "Result",
    "SecretRef",
    "TaskManager",
    "TimedOut",
    "Unreachable",
    "load",
    "register",
]


class Options(TypedDict, total=False):
    """What may be said about any command besides its arguments.

    The same `command_id`, `issued_at` and arguments make the same message, which the engine takes once however often
    it is sent; passwords are then given as `SecretRef`, since storing one again makes a new reference.
    """

    command_id: UUID | str
    issued_at: datetime
    expected_version: int
    deadline: datetime


class TaskManager:
    """Publishes commands for one project. `broker` is a connection to share, or where to make an own one."""

    kind = "instance"

    def __init__(
        self,
        context: Any,
        broker: Connection | BrokerSettings | str = DEFAULT_URL,
        **connection_options: Any,
    ) -> None:
        self.context = context_from(context)
        self._owned = not isinstance(broker, Connection)
        self.connection = broker if isinstance(broker, Connection) else Connection(broker, **connection_options)
        self.queries = Queries(self.connection, self.context.project)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, unless it was given."""
        if self._owned:
            await self.connection.close()

    def operation(self, command_id: UUID | str) -> Operation:
        """The handle of a command that was published before, by whomever in this project."""
        return Operation(self.connection, self.context.project, identifier(command_id), None, self._about)

    async def put_secret(self, secret: str) -> SecretRef:
        """Hand a secret to the vault, past every log and stream, for the reference that commands carry."""
        subject = query_subject(self.context.project, "secrets", "put")
        answer = await self.connection.request(subject, {"secret": secret})
        return SecretRef(str(answer["secret_ref"]))

    # --- the commands ---------------------------------------------------------------------------------------------

    async def create_instance(
        self,
        instance_id: UUID | str,
        name: str,
        flavor: Any,
        image_id: str | None,
        databases: list[Any] | None,  # the predecessor's parameter name
        users: list[Any] | None,
        datastore_manager: str,
        packages: Any,
        volume_size: int,
        backup_id: UUID | str | None = None,
        availability_zone: str | None = None,
        root_password: str | SecretRef | None = None,
        nics: Any = None,
        overrides: dict[str, Any] | None = None,
        slave_of_id: Any = None,
        cluster_config: Any = None,
        volume_type: str | None = None,
        modules: Any = None,
        locality: Any = None,
        access: Any = None,
        ds_version: str | None = None,
        *,
        region: str | None = None,
        keep_on_failure: bool = False,
        **options: Unpack[Options],
    ) -> Operation:
        """Make an instance under an id that the caller chooses."""
        target = identifier(instance_id)
        if not isinstance(name, str) or not isinstance(volume_size, int):
            raise InvalidCommand("invalid_argument", "name must be a string and volume_size a whole number of GiB")
        args = present(
            name=name,
            flavor=flavor_reference(flavor),
            image_id=image_id,
            databases=_databases(databases),
            users=[await self._without_password(user) for user in _users(users)],
            datastore=datastore_manager,
            packages=packages,
            volume_size=volume_size,
            backup_id=backup_id,
            availability_zone=availability_zone,
            root_password_ref=None if root_password is None else await self._reference(root_password),
            nics=networks(nics),
            overrides=overrides,
            slave_of_id=slave_of_id,
            cluster_config=cluster_config,
            volume_type=volume_type,
            modules=modules,
            locality=locality or None,
            access=None if not access else access_of(access),
            region=region,
            datastore_version=ds_version,
            keep_on_failure=keep_on_failure,
        )
        return await self._send(target, "create_instance", args, options)

    async def delete_instance(self, instance_id: UUID | str, **options: Unpack[Options]) -> Operation:
        """Remove the instance and all it holds."""
        return await self._send(identifier(instance_id), "delete_instance", {}, options)

    async def reboot(self, instance_id: UUID | str, *, hard: bool = False, **options: Unpack[Options]) -> Operation:
        """Stop the database, reboot the server, start the database."""
        return await self._send(identifier(instance_id), "reboot", {"hard": True} if hard else {}, options)

    async def restart(self, instance_id: UUID | str, **options: Unpack[Options]) -> Operation:
        """Restart the database software."""
        return await self._send(identifier(instance_id), "restart", {}, options)

    async def resize_volume(self, instance_id: UUID | str, new_size: int, **options: Unpack[Options]) -> Operation:
        """Extend the volume to so many GiB."""
        return await self._send(identifier(instance_id), "resize_volume", {"new_size": new_size}, options)

    async def resize_flavor(
        self, instance_id: UUID | str, old_flavor: Any, new_flavor: Any, **options: Unpack[Options]
    ) -> Operation:
        """Give the instance another flavor. The engine knows the old one itself; `old_flavor` is only checked."""
        if old_flavor is not None:
            flavor_reference(old_flavor)
        args = {"flavor": flavor_reference(new_flavor)}
        return await self._send(identifier(instance_id), "resize_flavor", args, options)

    async def migrate(self, instance_id: UUID | str, host: str | None = None, **options: Unpack[Options]) -> Operation:
        """Move the server to another host."""
        return await self._send(identifier(instance_id), "migrate", present(host=host), options)

    async def rebuild(
        self, instance_id: UUID | str, image_id: str | None = None, snapshot: bool = False, **options: Unpack[Options]
    ) -> Operation:
        """Make the server anew, from the image if one is named; databases, users and data stay.

        `snapshot`: the volume as it was is kept until the database is healthy again.
        """
        args = present(image_id=image_id, snapshot=snapshot or None)
        return await self._send(identifier(instance_id), "rebuild", args, options)

    async def update_access(
        self, instance_id: UUID | str, access: Mapping[str, Any], **options: Unpack[Options]
    ) -> Operation:
        """Change who can reach the database: `is_public` or `public`, `allowed_cidrs`; what is left out stays."""
        return await self._send(identifier(instance_id), "update_access", access_of(access), options)

    async def stop_instance(self, instance_id: UUID | str, **options: Unpack[Options]) -> Operation:
        """Stop the database and its server; the data stay."""
        return await self._send(identifier(instance_id), "stop_instance", {}, options)

    async def start_instance(self, instance_id: UUID | str, **options: Unpack[Options]) -> Operation:
        """Start a stopped instance."""
        return await self._send(identifier(instance_id), "start_instance", {}, options)

    async def set_quota(self, limits: Mapping[str, int | None], **options: Unpack[Options]) -> Operation:
        """Set limits of the project: -1 is none, None the installation's again. The broker lets only operators."""
        return await self._send(str(quota_id(self.context.project)), "set_quota", limits, options, kind="quota")

    # --- the commands about an operation ----------------------------------------------------------------------------
    # Each returns the handle of the command itself; what comes of the operation is told by the operation's own.
    # Without `instance_id` the operation is looked up, which takes it to be in the read model already.

    async def cancel_operation(
        self,
        operation_id: UUID | str,
        reason: str | None = None,
        *,
        instance_id: UUID | str | None = None,
        **options: Unpack[Options],
    ) -> Operation:
        """End the operation at its next safe point and undo it; rejected where there is no way back."""
        return await self._about("cancel_operation", operation_id, instance_id, present(reason=reason), options)

    async def retry_operation(
        self,
        operation_id: UUID | str,
        reason: str | None = None,
        *,
        instance_id: UUID | str | None = None,
        **options: Unpack[Options],
    ) -> Operation:
        """Try again now what a parked operation owes, or what waits for its next try."""
        return await self._about("retry_operation", operation_id, instance_id, present(reason=reason), options)

    async def skip_step(
        self,
        operation_id: UUID | str,
        reason: str | None = None,
        facts: dict[str, Any] | None = None,
        *,
        instance_id: UUID | str | None = None,
        **options: Unpack[Options],
    ) -> Operation:
        """Have a parked operation go on as if what it owes was paid; without `facts` only where absence is owed."""
        args = present(reason=reason, facts=facts)
        return await self._about("skip_step", operation_id, instance_id, args, options)

    async def abandon_operation(
        self,
        operation_id: UUID | str,
        reason: str | None = None,
        *,
        instance_id: UUID | str | None = None,
        **options: Unpack[Options],
    ) -> Operation:
        """End a parked operation where it is; the instance is in ERROR then."""
        return await self._about("abandon_operation", operation_id, instance_id, present(reason=reason), options)

    # --- publishing -----------------------------------------------------------------------------------------------

    async def _send(
        self, target: str, command: str, args: Mapping[str, Any], options: Options, *, kind: str | None = None
    ) -> Operation:
        command_id = UUID(identifier(options.get("command_id") or uuid4()))
        envelope = CommandEnvelope(
            command_id=command_id,
            args=dict(args),
            actor=self.context.actor,
            issued_at=_zoned(options.get("issued_at") or utc_now()),
            expected_version=options.get("expected_version"),
            deadline=_zoned(options.get("deadline") or self.context.deadline),
            traceparent=self.context.traceparent,
        )
        body = _encode(envelope, command)
        project = self.context.project
        headers = {
            MSG_ID: message_id(project, command_id, body),
            REPLY_TO: await self.connection.expect_decision(str(command_id)),
        }
        subject = str(CommandSubject(project, kind or self.kind, target, command))
        try:
            await self.connection.publish(subject, body, headers)
        except ClientError:
            self.connection.forget_decision(str(command_id))
            raise
        return Operation(self.connection, project, str(command_id), target, self._about)

    async def _about(
        self,
        command: str,
        operation_id: UUID | str,
        instance_id: UUID | str | None,
        args: dict[str, Any],
        options: Options | None = None,
    ) -> Operation:
        """Publish a command about an operation, to the instance that it runs on."""
        operation = identifier(operation_id)
        if instance_id is None:
            instance_id = (await self.queries.get("operations", operation_id=operation))["instance_id"]
        return await self._send(identifier(instance_id), command, {"operation_id": operation, **args}, options or {})

    async def _without_password(self, user: dict[str, Any]) -> dict[str, Any]:
        password = user.pop("password", None)
        if password is not None:
            user["password_ref"] = await self._reference(password)
        return user

    async def _reference(self, secret: str | SecretRef) -> str:
        if isinstance(secret, SecretRef):
            return secret.ref
        if not isinstance(secret, str) or not secret:
            raise InvalidCommand("invalid_argument", "a password must be a string that is not empty")
        return (await self.put_secret(secret)).ref


# The parameters of create_instance shadow these two names.
_databases, _users = databases, users


def _zoned(at: datetime | None) -> Any:
    if at is not None and at.tzinfo is None:
        raise InvalidCommand("invalid_argument", f"{at} has no time zone; give one")
    return at


def _encode(envelope: CommandEnvelope, command: str) -> bytes:
    try:
        body = msgspec.json.encode(envelope)
    except (TypeError, ValueError) as e:
        raise InvalidCommand("invalid_argument", f"an argument of {command} is no plain data: {e}") from None
    if len(body) > MAX_BODY:
        raise InvalidCommand("too_large", f"{command} has {len(body)} bytes, at most {MAX_BODY} are taken; send less")
    return body


# Cluster strategies put the client class of their datastore here.
_strategies: dict[str, type[TaskManager]] = {}


def register(manager: str, client: type[TaskManager]) -> None:
    """Name the client class for a datastore's commands; a name can be given once."""
    if _strategies.setdefault(manager, client) is not client:
        raise ValueError(f"datastore {manager} has the client {_strategies[manager].__name__} already")


def load(context: Any, manager: str | None = None, **options: Any) -> TaskManager:
    """The client for a datastore's commands: its strategy's class if it has one, else the plain one."""
    return _strategies.get(manager or "", TaskManager)(context, **options)
