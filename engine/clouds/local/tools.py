"""Runs the system's own programs, each with a deadline; what they say on failure becomes the error.

A program is not ended when the engine dies: it keeps the lock of its operation until it is done.
"""

from __future__ import annotations

import subprocess

from engine.clouds.local.locks import Lock
from engine.clouds.port import TransientError


def run(*argv: str, lock: Lock, timeout: float = 60.0) -> str:
    """Run a program to its end and return what it printed. Raises `TransientError`."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            pass_fds=(lock.descriptor,),
        )
    except subprocess.TimeoutExpired as error:
        raise TransientError("timeout", f"{' '.join(argv)} did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise TransientError("cloud_error", f"{' '.join(argv)} ended with {done.returncode}: {said}")
    return done.stdout
