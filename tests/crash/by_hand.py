"""Calls to the simulated cloud that nobody of ours makes: what an operator does by hand."""

from __future__ import annotations

from uuid import UUID

from engine.clouds.simulated.faults import Call


def list_servers(instance_id: UUID) -> Call:
    """The servers of the instance."""
    return Call(name="list_servers", args={"name": f"holdfast-{instance_id}"}, caller="by hand")


def delete_server(server_id: str) -> Call:
    """Delete one."""
    return Call(name="delete_server", args={"id": server_id}, caller="by hand")
