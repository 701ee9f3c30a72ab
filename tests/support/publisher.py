"""A publisher in raw NATS, as any language could do it: publish with ack, wait for the decision on an inbox."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from nats.aio.client import Client


class Publisher:
    """Publishes commands of one project."""

    def __init__(self, client: Client, project: str = "acme") -> None:
        self.client = client
        self.project = project

    async def send(
        self,
        command: str,
        aggregate_id: UUID | str,
        args: dict[str, Any] | None = None,
        *,
        kind: str = "instance",
        **envelope: Any,
    ) -> dict[str, Any]:
        """Publish a command; its decision."""
        body = {
            "command_id": str(uuid4()),
            "args": args or {},
            "actor": "alice",
            "issued_at": datetime.now(UTC).isoformat(),
            **envelope,
        }
        return await self.send_body(command, aggregate_id, json.dumps(body).encode(), kind=kind)

    async def send_body(
        self, command: str, aggregate_id: UUID | str, body: bytes, *, kind: str = "instance", wait: float = 20
    ) -> dict[str, Any]:
        """Publish any body; the decision."""
        inbox = self.client.new_inbox()
        subscription = await self.client.subscribe(inbox)
        await self.publish(command, aggregate_id, body, kind=kind, reply_to=inbox)
        message = await asyncio.wait_for(subscription.next_msg(timeout=wait), wait)
        await subscription.unsubscribe()
        decision: dict[str, Any] = json.loads(message.data)
        return decision

    async def publish(
        self,
        command: str,
        aggregate_id: UUID | str,
        body: bytes,
        *,
        kind: str = "instance",
        reply_to: str = "",
    ) -> None:
        """Publish and await the broker's acknowledgement."""
        subject = f"holdfast.v1.cmd.{self.project}.{kind}.{aggregate_id}.{command}"
        headers = {"Holdfast-Reply-To": reply_to} if reply_to else None
        await self.client.jetstream().publish(subject, body, headers=headers, timeout=10)


CREATE: dict[str, Any] = {
    "name": "orders",
    "flavor": "small",
    "datastore": "postgresql",
    "volume_size": 1,
}
