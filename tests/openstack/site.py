"""A Holdfast on the lab: the real program, and real machines for its servers. Nothing of it is left at the end."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from openstack.connection import Connection

from engine.messages import EnrolReply, EnrolRequest, enrolment_subject
from tests.openstack.machine.hook import write_hook
from tests.openstack.machine.machine import clear, reachable
from tests.openstack.services import Lab
from tests.support.databases import Database
from tests.support.installation import Installation, installation

PASSWORD = "correct-horse-battery"
CLOUD = "lab-service"
DATASTORES = ("postgresql/16", "mariadb/10.11", "redis/6.2")  # that this machine can play


class Site:
    """The installation, the directory of its machines, and the hook by which nova-compute tells them what happens."""

    def __init__(self, made: Installation, lab: Lab, machines: Path) -> None:
        self.made = made
        self.machines = machines
        self.cloud_options: list[str] = []
        self._lab = lab
        self._hook = lab.hooks / f"{machines.name}-hook"

    def start(self, config: Path, *arguments: str, broker: str | None = None, cloud: str = CLOUD) -> None:
        """Start the program, and play the machines of its servers from now on. `broker`: where that of others is."""
        self.cloud_options = ["--cloud", f"openstack:{cloud}", "--cloud-config", str(config)]
        self.made.start(arguments=[*self.cloud_options, *arguments])
        write_hook(self._hook, self.machines, broker or self.made.url)

    def stop(self) -> None:
        """Play no machine any more, and end those that there are."""
        self._hook.unlink(missing_ok=True)
        clear(self.machines)

    def said(self, *arguments: str, status: int = 0) -> Any:
        """The JSON answer of a call of the program that ends with the status."""
        done = self.made.holdfast(*arguments, "--json", within=300, DB_PASSWORD=PASSWORD)
        assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}\n{self.made.said()}"
        return json.loads(done.stdout) if done.stdout else None

    def create(self, name: str, datastore: str, *more: str) -> dict[str, Any]:
        """The record of a new instance with a user and, where there are such, a database."""
        manager, _, version = datastore.partition("/")
        tenant = ["--user", "app"] if manager == "redis" else ["--database", "app", "--user", "app:app"]
        wanted = ["--datastore", manager, "--version", version, "--flavor", "lab.small", *tenant, *more]
        self.said("create", name, *wanted, "--password-env", "DB_PASSWORD")
        return self.shown(name)

    def shown(self, name: str) -> dict[str, Any]:
        """The instance's record."""
        found: dict[str, Any] = self.said("show", name)
        return found

    def database(self, shown: dict[str, Any]) -> Database:
        """The tenant's way to the database, by the address that the tenant is told."""
        return Database(shown | {"address": reachable(shown["address"])}, PASSWORD)

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Ask as a machine does."""
        client = await self.made.connect("enrol")
        try:
            answer = await client.request(enrolment_subject(), msgspec.json.encode(request), timeout=10)
        finally:
            await client.close()
        return msgspec.json.decode(answer.data, type=EnrolReply)


def write_config(path: Path, service: Connection, more: str = "") -> Path:
    """The least that an operator says, one network and an image for each datastore; and more, from the networks on."""
    image = service.image.find_image("lab-image", ignore_missing=False).id
    images = "\n".join(f'"{each}" = "{image}"' for each in DATASTORES)
    servers = f'[servers]\nflavors = ["lab.*"]\n[servers.images]\n{images}\n'
    path.write_text(f'[networks]\ntenant = "lab-net"\n{more}{servers}')
    return path


@contextmanager
def running_site(
    lab: Lab, service: Connection, *arguments: str, broker: str | None = None, more: str = "", cloud: str = CLOUD
) -> Iterator[Site]:
    """A Holdfast that serves, started with these arguments."""
    machines = Path(tempfile.mkdtemp(prefix="holdfast-machines-"))  # guests pass through it
    machines.chmod(0o711)
    with installation() as made:
        site = Site(made, lab, machines)
        try:
            site.start(write_config(machines / "cloud.toml", service, more), *arguments, broker=broker, cloud=cloud)
            yield site
        finally:
            site.stop()
            shutil.rmtree(machines)
