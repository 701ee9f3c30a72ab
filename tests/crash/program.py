"""The programs whose processes the matrix kills, loaded once for all: `holdfast`, and the simulated cloud.

A process forked from one that has loaded this runs what the command line runs, with its arguments and environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import engine.service  # noqa: F401 - the command line loads it when it runs; here it is to be there by then
from engine.cli import main as holdfast
from engine.clouds.simulated.__main__ import main as simulated_cloud


def run(role: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Be the process of this role, until it ends. The log must exist."""
    os.environ.clear()
    os.environ.update(environment)
    os.setsid()
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if role == "cloud":
        sys.exit(simulated_cloud(list(arguments)))
    holdfast(arguments)
