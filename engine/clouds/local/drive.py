"""A server's directory: its record, its config drive, and its agent's own directory.

What the agent is told is written again before each start, so that it fits after a move of the directory or of the
broker. Under root only the agent's directory belongs to the guests' user: what else the agent needs it reads before it
becomes that user.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.clouds.local import records
from engine.clouds.local.records import Process, Server
from engine.guest.config import AgentConfig, encode


class Drive:
    """The directory of one server on one host."""

    def __init__(self, directory: Path, owner: tuple[int, int] | None) -> None:
        self.directory = directory
        self._owner = owner

    @property
    def host(self) -> str:
        """The host whose directory it lies in."""
        return self.directory.parent.parent.name

    @property
    def config(self) -> Path:
        """What the agent is told."""
        return self.directory / "config-drive" / "agent.json"

    @property
    def log(self) -> Path:
        """What the agent prints."""
        return self.directory / "agent" / "agent.log"

    @property
    def _seed(self) -> Path:
        return self.directory / "config-drive" / "agent.nk"

    def prepare(self, seed: bytes | None) -> None:
        """Make what a record needs around it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o711)
        records.sync_directory(self.directory.parent)
        self.config.parent.mkdir(exist_ok=True, mode=0o700)
        self.log.parent.mkdir(exist_ok=True, mode=0o700)
        if self._owner is not None:
            os.chown(self.log.parent, *self._owner)
        if seed is not None:
            records.write_bytes(self._seed, seed, mode=0o600)

    def clear(self) -> None:
        """Remove what lies on the server, as when it is made anew. What it is told stays."""
        shutil.rmtree(self.log.parent, ignore_errors=True)
        self.prepare(None)

    def server(self) -> Server | None:
        """The record."""
        return records.read(self.directory / "server.json", Server)

    def write(self, server: Server) -> Server:
        """Record the server."""
        records.write(self.directory / "server.json", server)
        return server

    def process(self) -> Process | None:
        """The agent's process as last recorded."""
        return records.read(self.directory / "process.json", Process)

    def write_process(self, process: Process) -> None:
        """Record the agent's process."""
        records.write(self.directory / "process.json", process)

    def tell(self, server: Server, volume: Path, nats_url: str, tls_ca: Path | None = None) -> None:
        """Write the config drive."""
        config = AgentConfig(
            instance_id=server.instance_id,
            nats_url=nats_url,
            seed_file=self._seed if self._seed.exists() else None,
            datastore=server.datastore,
            datastore_version=server.datastore_version,
            address=server.address,
            volume=volume,
            directory=self.directory / "agent",
            tls_ca=tls_ca,
        )
        records.write_bytes(self.config, encode(config), mode=0o600)
