"""Reading read models in tests: caught up with the story, from a connection of the test's own."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from projections.base import FILE, Log, ReadModels


def catch_up(models: ReadModels, log: Log, page: int = 50) -> None:
    """Apply everything that the models have not read."""
    for name in models.models:
        while events := log.read(models.position(name), page):
            stopped = models.advance([name], events)
            assert not stopped, stopped


def connect(directory: Path) -> sqlite3.Connection:
    """A read-only connection to the models of a directory."""
    connection = sqlite3.connect(f"{(directory / FILE).as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def dump(models: ReadModels) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, and the positions."""
    connection = connect(models.path.parent)
    try:
        tables = [table for model in models.models.values() for table in model.tables]
        rows = {table: sorted(map(tuple, connection.execute(f"SELECT * FROM {table}")), key=repr) for table in tables}
    finally:
        connection.close()
    return {**rows, "positions": [(name, models.position(name)) for name in models.models]}
