"""What a guest agent is told when its server starts: the config drive, one JSON file without secrets."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import msgspec


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `agent.json`. `seed_file` holds the agent's broker seed; `tls_ca` a CA file, if any.

    `volume` is where the volume is mounted; `directory` the agent's own, for its journal and its database's logs;
    `requests` where it asks root's part to mount the volume and to let go of it, None where the volume is a directory
    that stays; `kept` where on the volume it leaves what a server made anew must find, None where its directory stays;
    `address` the loopback or network address to listen on. `beat_interval` in seconds. `gibibyte` is how many bytes the
    agent takes for a GiB of volume: tests fill small volumes by it.
    """

    instance_id: UUID
    nats_url: str
    seed_file: Path | None
    datastore: str
    datastore_version: str
    address: str
    volume: Path
    directory: Path
    requests: Path | None = None
    kept: Path | None = None
    beat_interval: float = 2.0
    tls_ca: Path | None = None
    gibibyte: int = 1 << 30


def read(path: Path) -> AgentConfig:
    """Raises `OSError` or `msgspec.ValidationError`, which names the field."""
    return msgspec.json.decode(path.read_bytes(), type=AgentConfig, dec_hook=lambda kind, value: kind(value))


def encode(config: AgentConfig) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(config, enc_hook=str))


def write(path: Path, config: AgentConfig) -> None:
    """Replace the file in one step."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(encode(config))
    fresh.replace(path)
