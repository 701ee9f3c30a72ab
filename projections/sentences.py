"""One sentence in plain English for each event, from its facts alone.

An event without a sentence of its own is told by the first line of its class's documentation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def sentence(event: Any) -> str:
    """What happened."""
    tell = _SENTENCES.get(event.TOPIC)
    if tell is not None:
        return tell(event)
    first = (inspect.getdoc(type(event)) or type(event).__name__).splitlines()[0]
    return first[0].upper() + first[1:]


def _requested(what: str) -> Callable[[Any], str]:
    return lambda e: f"{e.operation.actor} asked {what.format(e=e)}."


def _because(event: Any) -> str:
    return f" ({event.intervention.reason})" if event.intervention.reason else ""


def _image(image_id: str | None) -> str:
    return f"image {image_id}" if image_id else "the image of its datastore version"


def _limits(own: Any) -> str:
    known = {"instances": own.instances, "ram": own.ram, "volumes": own.volumes, "backups": own.backups}
    words = {name: "unlimited" if limit == -1 else str(limit) for name, limit in known.items() if limit is not None}
    return ", ".join(f"{name} {word}" for name, word in words.items()) or "those of the installation"


def _networks(access: Any) -> str:
    return ", ".join(access.allowed_cidrs) or "nobody"


_SENTENCES: dict[str, Callable[[Any], str]] = {
    "instance.InstanceRequested": lambda e: (
        f"{e.operation.actor} asked for the instance {e.name}: {e.datastore} {e.datastore_version}, flavor "
        f"{e.flavor.name}, {e.volume_size} GiB{f', in region {e.region}' if e.region else ''}."
    ),
    "instance.RestartRequested": _requested("to restart the database"),
    "instance.RebootRequested": lambda e: (
        f"{e.operation.actor} asked to reboot the server{' hard' if e.hard else ''}, and the database with it."
    ),
    "instance.VolumeResizeRequested": _requested("to extend the volume to {e.new_volume_size} GiB"),
    "instance.FlavorResizeRequested": _requested("to change the flavor to {e.new_flavor.name}"),
    "instance.MigrationRequested": lambda e: (
        f"{e.operation.actor} asked to move the server to "
        f"{'host ' + e.target_host if e.target_host else 'another host'}."
    ),
    "instance.RebuildRequested": lambda e: (
        f"{e.operation.actor} asked to make the server anew from {_image(e.new_image_id)}"
        f"{', and to keep a snapshot of the volume until it is healthy' if e.snapshot else ''}."
    ),
    "instance.AccessUpdateRequested": lambda e: (
        f"{e.operation.actor} asked that the database be {'public' if e.new_access.public else 'private'}, and "
        f"reached by {_networks(e.new_access)}."
    ),
    "instance.ServerGroupCreated": lambda e: f"The server group {e.server_group_id} exists.",
    "instance.SecurityGroupCreated": lambda e: f"The security group {e.security_group_id} exists; it lets nobody in.",
    "instance.AccessRulesAdded": lambda e: f"The database can be reached by {_networks(e.access)}.",
    "instance.AccessRulesRemoved": lambda e: f"The database can be reached by {_networks(e.access)}, and nobody else.",
    "instance.ManagementPortCreated": lambda e: f"The port {e.management_port_id} of the guest agent exists.",
    "instance.FloatingAddressCreated": lambda e: f"The database can be reached from outside, at {e.public_address}.",
    "instance.ServerRebuilt": lambda e: f"The server was made anew from {_image(e.image_id)}.",
    "instance.StopRequested": _requested("to stop the instance"),
    "instance.StartRequested": _requested("to start the instance"),
    "instance.DeletionRequested": _requested("to delete the instance"),
    "instance.PortCreated": lambda e: f"The port {e.port_id} exists, with the address {e.address}.",
    "instance.VolumeCreated": lambda e: f"The volume {e.volume_id} exists and is available.",
    "instance.SnapshotCreated": lambda e: f"The volume is kept as it is now by the snapshot {e.snapshot_id}.",
    "instance.ServerCreated": lambda e: f"The server {e.server_id} exists and is ACTIVE, on host {e.host}.",
    "instance.DatabasePrepared": lambda e: f"The database is installed, secured and started, on port {e.port}.",
    "instance.ServerMigrated": lambda e: f"The server is on host {e.new_host}, to be confirmed.",
    "instance.FlavorResizeConfirmed": lambda e: f"The flavor is {e.flavor.name} now.",
    "instance.MigrationConfirmed": lambda e: f"The server is on host {e.host} now.",
    "instance.VolumeExtended": lambda e: f"The volume has {e.volume_size} GiB.",
    "instance.Failed": lambda e: (
        f"In {e.failure.state} the operation failed for good ({e.failure.code}): {e.failure.message}; next: {e.state}."
    ),
    "instance.AttemptFailed": lambda e: (
        f"Try {e.attempt} of {e.effect} failed ({e.code}): {e.message}; the next is due at "
        f"{e.retry_at:%Y-%m-%d %H:%M:%S} UTC."
    ),
    "instance.OperationParked": lambda e: (
        f"{e.effect} cannot be paid ({e.code}): {e.message}; it waits for an operator."
    ),
    "instance.LastLookDue": lambda e: (
        f"{e.effect} failed ({e.code}): {e.message}; a call of it may have done it, or may yet, so at "
        f"{e.due_at:%Y-%m-%d %H:%M:%S} UTC it is looked whether it is done."
    ),
    "instance.LateOutcome": lambda e: (
        f"What {e.effect} has made became known when its state had ended: "
        f"{', '.join(f'{name} {value}' for name, value in e.facts.items()) or 'nothing'}."
    ),
    "instance.CancelRequested": lambda e: (
        f"{e.intervention.actor} cancelled the operation in {e.failure.state}{_because(e)}; next: {e.state}."
    ),
    "instance.RetryRequested": lambda e: f"{e.intervention.actor} asked to try again now{_because(e)}.",
    "instance.StepSkipped": lambda e: f"{e.intervention.actor} declared {e.effect} to be done{_because(e)}.",
    "instance.OperationAbandoned": lambda e: (
        f"{e.intervention.actor} abandoned the operation in {e.failure.state}{_because(e)}; left: "
        f"{', '.join(e.left_behind) or 'nothing'}."
    ),
    "instance.CallUnanswered": lambda e: (
        f"A call of {e.effect} may have gone out and its answer is not known; until {e.until:%Y-%m-%d %H:%M:%S} UTC it "
        "may still be carried out."
    ),
    "instance.SurplusRemoved": lambda e: (
        f"What unanswered calls had made too many was removed: {', '.join(e.removed)}."
        if e.removed
        else "No call that went unanswered has left anything too many."
    ),
    "instance.SurplusFound": lambda e: (
        f"The cloud holds the {e.found}, which bears the instance's name and is none of its own: it is to be removed."
    ),
    "instance.OrphanDisowned": lambda e: f"{e.actor} asked to remove the orphan {e.found}.",
    "instance.OrphanAdopted": lambda e: f"{e.actor} had the orphan {e.found} recorded as the instance's own.",
    "instance.SurplusDeleted": lambda e: f"The surplus {e.removed} is gone.",
    "instance.DriftFound": lambda e: f"Somebody has changed what the cloud holds: the {e.drift}.",
    "instance.DriftGone": lambda e: f"It is over that the {e.drift}.",
    "quota.ReservationChanged": lambda e: (
        f"The quota holds {e.held.ram} MiB and {e.held.volumes} GiB for instance {e.instance_id}."
    ),
    "quota.BackupReserved": lambda e: f"The quota counts backup {e.backup_id}.",
    "quota.BackupReleased": lambda e: f"The quota counts backup {e.backup_id} no more.",
    "quota.LimitsSet": lambda e: f"{e.actor} set the project's limits: {_limits(e.limits)}.",
    "quota.ReservationReleased": lambda e: f"The quota holds nothing for instance {e.instance_id} any more.",
    "health.HealthWatched": lambda e: f"The heartbeats of instance {e.instance_id} are listened for.",
    "health.HealthChanged": lambda e: f"The health is {e.health} after {e.previous}: {e.reason}.",
    "command.CommandAccepted": lambda e: f"{e.actor}'s {e.command} was accepted.",
    "command.CommandRejected": lambda e: f"{e.actor}'s {e.command} was rejected ({e.code}): {e.reason}.",
}
