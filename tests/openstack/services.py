"""The lab: where it is, and its services, which a test may stop for a while.

The lab is the one that `OS_CLIENT_CONFIG_FILE` is of, else that of `OS_LAB_DIR`, else this checkout's own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "lab"
LONGEST = 300.0  # seconds that a service may take to start on a busy machine


class Lab:
    """A lab that is up. Raises `RuntimeError` when it is not."""

    def __init__(self) -> None:
        default = Path(os.environ.get("OS_LAB_DIR", CHECKOUT / ".openstack-lab")) / "clouds.yaml"
        self.clouds = Path(os.environ.get("OS_CLIENT_CONFIG_FILE", default)).absolute()
        self.directory = self.clouds.parent
        if not self.clouds.exists():
            raise RuntimeError(f"there is no OpenStack lab in {self.directory}: start it with make openstack-up")

    @property
    def hooks(self) -> Path:
        """The directory whose executables nova-compute runs for what happens to servers."""
        return self.directory / "hooks.d"

    @property
    def logs(self) -> Path:
        """The directory of what the services say, and of the requests that they were sent."""
        return self.directory / "log"

    def stop(self, name: str) -> None:
        """Stop a service, as an operator would."""
        self._service("stop", name)

    def start(self, name: str) -> None:
        """Start a service and wait until it serves. One that is up is left alone."""
        self._service("start", name)

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """While these services are down."""
        try:
            for name in names:
                self.stop(name)
            yield
        finally:
            for name in names:
                self.start(name)

    def _service(self, action: str, name: str) -> None:
        environment = {**os.environ, "OS_LAB_DIR": str(self.directory)}
        command = [str(SCRIPTS / "service.sh"), action, name]
        done = subprocess.run(
            command, env=environment, timeout=LONGEST, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            raise RuntimeError(f"the lab cannot {action} {name}:\n{done.stderr}")
