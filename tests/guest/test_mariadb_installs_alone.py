"""A MariaDB that is being installed leaves the temporary tables of all others alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.guest.conftest import NewServer
from tests.support.postgres import NOBODY


async def test_temporary_tables_of_another_server_survive_an_installation(new_server: NewServer) -> None:
    # A server that starts removes all that is named like this from where it keeps its own temporary tables.
    descriptor, name = tempfile.mkstemp(prefix="#sql-temptable-", suffix=".MAI")
    if os.geteuid() == 0:  # databases then run as this user, who can remove its own files alone
        os.fchown(descriptor, NOBODY, NOBODY)
    os.close(descriptor)
    try:
        guest = new_server(("mariadb", "10.11"))
        await guest.open()
        await guest.prepare()
        assert Path(name).exists()
    finally:
        Path(name).unlink(missing_ok=True)
