"""A MariaDB that is being installed leaves the temporary tables of all others alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import NewServer
from tests.support.postgres import NOBODY


@pytest.fixture
def table_of_another() -> Iterator[Path]:
    """A temporary table in the system's directory for them. A server that starts there removes it."""
    descriptor, name = tempfile.mkstemp(prefix="#sql-temptable-", suffix=".MAI")
    if os.geteuid() == 0:  # databases then run as this user, who can remove its own files alone
        os.fchown(descriptor, NOBODY, NOBODY)
    os.close(descriptor)
    yield Path(name)
    Path(name).unlink(missing_ok=True)


async def test_temporary_tables_of_others_survive_an_installation(
    new_server: NewServer, table_of_another: Path
) -> None:
    guest = new_server(("mariadb", "10.11"))
    await guest.open()
    await guest.prepare()
    assert os.path.exists(table_of_another)  # noqa: ASYNC240, PTH110 - one look at a local file
