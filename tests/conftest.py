"""Fixtures for all tests: real servers, each with files and ports of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.postgres import running_postgres

LONGEST = ("test_killed_thirty_times", "test_matrix_in_virtual_time")

_ordinal = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server, shared by the tests of one process."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty event store, on each kind of database."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/events.db"
    url: str = request.getfixturevalue("postgres")
    schema = f"store_{next(_ordinal)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{url}?schema={schema}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that several processes end at about the same time."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have to report in figures, also from other processes."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "figures" and report.when == "call":
                    terminalreporter.write_line(str(value))
