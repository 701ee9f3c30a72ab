"""A nats-server of the tests' own, from the wheel, without users: on a free port, which a restart keeps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = Path(sys.executable).parent / "nats-server"


class Broker:
    """One nats-server with JetStream on files."""

    def __init__(self, directory: Path, settings: str = "") -> None:
        self.directory = directory
        self.port = -1
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    def configure(self, settings: str) -> None:
        """Other settings, from the next start on."""
        self._settings = settings

    def start(self) -> None:
        """Start it, again on the port it had."""
        ports = self.directory / "ports"
        ports.mkdir(parents=True, exist_ok=True)
        for old in ports.iterdir():
            old.unlink()
        config = self.directory / "server.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\nports_file_dir: "{ports}"\nmax_payload: 1MB\n'
            f'jetstream {{ store_dir: "{self.directory}/store" }}\n{self._settings}\n'
        )
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([SERVER, "-c", config], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for found in ports.glob("*.ports"):
                content = found.read_text()
                if content.strip().endswith("}"):
                    self.port = int(json.loads(content)["nats"][0].rpartition(":")[2])
                    return
            time.sleep(0.02)
        raise TimeoutError(f"nats-server did not start: {(self.directory / 'log').read_text()}")

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        """Stop it where it stands: connections stay, nothing answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)


@contextmanager
def running_broker(directory: Path, settings: str = "") -> Iterator[Broker]:
    """A started broker, stopped at the end."""
    broker = Broker(directory, settings)
    broker.start()
    try:
        yield broker
    finally:
        broker.resume()
        broker.stop()
