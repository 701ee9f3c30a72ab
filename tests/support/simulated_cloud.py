"""A simulated cloud in a process of its own, as a test's own: started, asked, and ended with the test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What one holds of one instance: a port for its tenant, and one for its agent.
WHOLE = {"security_groups": 1, "ports": 2, "volumes": 1, "servers": 1}


@contextmanager
def simulated_cloud(directory: Path, *arguments: str) -> Iterator[Path]:
    """The socket of a running one. Its ledger is the file `ledger.jsonl` in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    socket, log = directory / "cloud.sock", directory / "cloud.log"
    command = [sys.executable, "-m", "engine.clouds.simulated", "--socket", str(socket)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--ledger", str(directory / "ledger.jsonl"), *arguments], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 60
        while "simulated_cloud_serves" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the simulated cloud did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        process.wait(30)
