"""The rows that a page of events changes: each is read at most once and written once, when the page is done.

What is read is what the page's earlier events left, so a model's events see each other as if each were written at once.
Nothing is in the file before `write`: a row that breaks a table's constraints is found out there, not where it is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from eventsourcing.sqlite import SQLiteCursor

Key = tuple[Any, ...]


class _Row:
    """One row: what is known of it, and what is not written yet."""

    __slots__ = ("changed", "complete", "present", "values")

    def __init__(self, values: dict[str, Any], *, complete: bool, present: bool) -> None:
        self.values = values
        self.changed: dict[str, Any] = {}
        self.complete = complete  # every column is known
        self.present = present  # it is in the file


class Rows:
    """Rows by table and key. Tables, columns and keys are constants of the models."""

    def __init__(self, cursor: SQLiteCursor, keys: Mapping[str, tuple[str, ...]]) -> None:
        self._cursor = cursor
        self._keys = keys
        self._rows: dict[str, dict[Key, _Row]] = {table: {} for table in keys}
        self._deleted: dict[str, set[Key]] = {table: set() for table in keys}

    def insert(self, table: str, row: dict[str, Any]) -> None:
        """Add a row. What it does not name has the table's default. Raises `ValueError` if the page has it already."""
        key = tuple(row[column] for column in self._keys[table])
        if key in self._rows[table]:
            raise ValueError(f"a second row for {key}, which an earlier event has made")
        self._rows[table][key] = _Row(row, complete=False, present=False)

    def update(self, table: str, key: Key, change: Mapping[str, Any]) -> None:
        """Change a row. One that is not there stays so."""
        row = self._rows[table].get(key)
        if row is None:
            if key in self._deleted[table]:
                return
            row = self._rows[table][key] = _Row({}, complete=False, present=True)
        (row.changed if row.present else row.values).update(change)

    def delete(self, table: str, key: Key) -> None:
        """Remove a row, if it is there."""
        self._rows[table].pop(key, None)
        self._deleted[table].add(key)

    def get(self, table: str, key: Key) -> Mapping[str, Any]:
        """The row that must be there, with the columns that it has got so far. Raises `LookupError`."""
        row = self._rows[table].get(key)
        if row is not None and (row.complete or not row.present):
            return {**row.values, **row.changed} if row.changed else row.values
        stored = None if key in self._deleted[table] else self._read(table, key)
        if stored is None:
            raise LookupError(f"no row for {key}, which an earlier event should have made")
        if row is None:
            row = self._rows[table][key] = _Row(stored, complete=True, present=True)
        else:
            row.values, row.complete = stored, True
        return {**row.values, **row.changed}

    def _read(self, table: str, key: Key) -> dict[str, Any] | None:
        self._cursor.execute(f"SELECT * FROM {table} WHERE {_where(self._keys[table])}", key)  # noqa: S608 - constants
        row = self._cursor.fetchone()
        return None if row is None else dict(row)

    def write(self) -> None:
        """Bring the file to what the page left."""
        for table, columns in self._keys.items():
            where = _where(columns)
            self._write(f"DELETE FROM {table} WHERE {where}", self._deleted[table])  # noqa: S608 - constants
            rows = self._rows[table].items()
            for names, values in _alike((row.values, ()) for _, row in rows if not row.present):
                marks = ",".join("?" * len(names))
                self._write(f"INSERT INTO {table} ({','.join(names)}) VALUES ({marks})", values)  # noqa: S608
            for names, values in _alike((row.changed, key) for key, row in rows if row.present and row.changed):
                changes = ",".join(f"{name}=?" for name in names)
                self._write(f"UPDATE {table} SET {changes} WHERE {where}", values)  # noqa: S608 - constants
        self._rows = {table: {} for table in self._keys}
        self._deleted = {table: set() for table in self._keys}

    def _write(self, statement: str, values: Iterable[Key]) -> None:
        self._cursor.executemany(statement, values)


def _where(columns: Iterable[str]) -> str:
    return " AND ".join(f"{column}=?" for column in columns)


def _alike(rows: Iterable[tuple[Mapping[str, Any], Key]]) -> Iterator[tuple[tuple[str, ...], list[Key]]]:
    """The values, each followed by its key, of those that name the same columns: one statement for all of them."""
    found: dict[tuple[str, ...], list[Key]] = {}
    for row, key in rows:
        found.setdefault(tuple(row), []).append((*row.values(), *key))
    yield from found.items()
