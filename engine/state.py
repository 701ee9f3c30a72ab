"""Where one installation keeps its state: every path under one directory, named here and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def default_directory() -> Path:
    """`/var/lib/holdfast` for root, the user's state directory else; the environment's HOLDFAST_STATE goes first."""
    chosen = os.environ.get("HOLDFAST_STATE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/holdfast")
    return Path(platformdirs.user_state_dir("holdfast"))


class StateDirectory:
    """The paths under one state directory. Making it makes the directory, open to its owner alone where it must be."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def prepare(self) -> None:
        """Make what is missing. Guests run as another user under root, so the root itself can be passed through."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        for private in (self.credentials, self.vault, self.broker, self.read_models, self.store):
            private.mkdir(exist_ok=True, mode=0o700)
        self.cloud.mkdir(exist_ok=True, mode=0o711)

    @property
    def store(self) -> Path:
        """The event store's directory (SQLite)."""
        return self.root / "store"

    @property
    def events(self) -> Path:
        """The event store's file."""
        return self.store / "events.db"

    @property
    def lock(self) -> Path:
        """Held by the one process that writes the event store."""
        return self.store / "writer.lock"

    @property
    def read_models(self) -> Path:
        """The projector's directory."""
        return self.root / "read-models"

    @property
    def broker(self) -> Path:
        """The embedded broker's configuration, storage, log and process file."""
        return self.root / "broker"

    @property
    def credentials(self) -> Path:
        """Seeds of the broker's users, `<user>.nk`, each readable by its owner alone."""
        return self.root / "credentials"

    @property
    def vault(self) -> Path:
        """Secrets, encrypted, and the key that opens them."""
        return self.root / "vault"

    @property
    def cloud(self) -> Path:
        """The local cloud: hosts with their servers, volumes, ports."""
        return self.root / "cloud"
