"""A machine of a cloud: what its image and its user data say, put together into what the agent is told.

On the local cloud there is no such thing: there the cloud itself writes the agent's configuration.
"""

from __future__ import annotations

from pathlib import Path

from engine.guest.address import own_address
from engine.guest.config import AgentConfig
from engine.guest.image import Image
from engine.guest.user_data import Machine


def agent_config(machine: Machine, image: Image, config_drive: Path | None) -> AgentConfig:
    """The agent's configuration. Raises `DatastoreError` when the machine has no address yet."""
    return AgentConfig(
        instance_id=machine.instance_id,
        nats_url=machine.nats_url,
        seed_file=image.home / "agent.nk",
        datastore=machine.datastore,
        datastore_version=machine.datastore_version,
        address=image.address or own_address(machine.instance_id, config_drive),
        volume=image.mount,
        directory=image.home,
        requests=image.requests,
        kept=image.kept,
        tls_ca=image.home / "broker-ca.pem" if machine.ca is not None else None,
    )
