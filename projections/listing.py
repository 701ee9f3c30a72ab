"""Lists: filtered, sorted, and page by page along a key, so that a page costs the same wherever it stands.

A record that is there throughout is listed once. One whose sort value changes between two pages may be missed or
seen twice: sort by what does not change (the default) to see each once.
"""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from projections.answers import Answer, ListAnswer, columns, from_row

LIMIT = 1000
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
DEFAULT_LIMIT = 100


class QueryError(Exception):
    """A query cannot be answered. `code` is stable and documented."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ListRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `list`. `filter`: field to value; `sort`: a field, with `-` before it from the largest down."""

    filter: dict[str, str | Integer | bool] | None = None
    sort: str | None = None
    marker: str | None = None
    limit: int | None = None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """How a read model is listed.

    `filters` and `sorts` map wire names to columns; `sort` is the default; `key` makes the order total; `default`
    conditions hold unless the request filters by the same field.
    """

    table: str
    answer: type[Answer]
    key: str
    filters: Mapping[str, str]
    sorts: Mapping[str, str]
    sort: str
    default: Mapping[str, str | int] = {}

    def page(self, connection: sqlite3.Connection, project: str, request: ListRequest) -> ListAnswer:
        """One page. Raises `QueryError`."""
        limit = self._limit(request)
        statement, values = self.statement(project, request)
        rows = connection.execute(statement, (*values, limit + 1)).fetchall()
        marker = None
        if len(rows) > limit:
            rows = rows[:limit]
            marker = _marker([rows[-1]["_sort"], rows[-1]["_key"]])
        return ListAnswer(items=[from_row(self.answer, row) for row in rows], next_marker=marker)

    def statement(self, project: str, request: ListRequest) -> tuple[str, list[Any]]:
        """The query without its limit, and its values. Raises `QueryError`."""
        where = ["project = ?"]
        values: list[Any] = [project]
        for column, value in self._conditions(request).items():
            where.append(f"{column} = ?")
            values.append(value)
        name, descending = self._order(request)
        column, direction, beyond = self.sorts[name], "DESC" if descending else "ASC", "<" if descending else ">"
        order = [column] if column == self.key else [column, self.key]
        if request.marker is not None:
            where.append(f"({', '.join(order)}) {beyond} ({', '.join('?' for _ in order)})")
            values.extend(_position(request.marker)[: len(order)])
        statement = (
            f"SELECT {columns(self.answer)}, {column} AS _sort, {self.key} AS _key FROM {self.table} "  # noqa: S608
            f"WHERE {' AND '.join(where)} ORDER BY {', '.join(f'{c} {direction}' for c in order)} LIMIT ?"
        )
        return statement, values

    def _conditions(self, request: ListRequest) -> dict[str, Any]:
        conditions: dict[str, Any] = dict(self.default)
        for name, value in (request.filter or {}).items():
            if name not in self.filters:
                raise QueryError("invalid_argument", f"no filter {name}; there are: {', '.join(sorted(self.filters))}")
            conditions[self.filters[name]] = int(value) if isinstance(value, bool) else value
        return conditions

    def _order(self, request: ListRequest) -> tuple[str, bool]:
        wanted = request.sort or self.sort
        name = wanted.removeprefix("-")
        if name not in self.sorts:
            raise QueryError("invalid_argument", f"no sort by {name}; there are: {', '.join(sorted(self.sorts))}")
        return name, wanted.startswith("-")

    @staticmethod
    def _limit(request: ListRequest) -> int:
        limit = DEFAULT_LIMIT if request.limit is None else request.limit
        if not 1 <= limit <= LIMIT:
            raise QueryError("invalid_argument", f"limit must be between 1 and {LIMIT}, not {limit}")
        return limit


def _marker(position: list[Any]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode()


def _position(marker: str) -> tuple[str | int, str | int]:
    try:
        content = base64.urlsafe_b64decode(marker.encode())
        return msgspec.json.decode(content, type=tuple[str | Integer, str | Integer])
    except (ValueError, msgspec.DecodeError):
        raise QueryError("invalid_argument", "the marker is none that a list gave; begin again without one") from None


def found(answer: type[Answer], connection: sqlite3.Connection, table: str, key: dict[str, Any]) -> Any:
    """The record of a key, or None."""
    where = " AND ".join(f"{column} = ?" for column in key)
    row = connection.execute(
        f"SELECT {columns(answer)} FROM {table} WHERE {where}",  # noqa: S608
        tuple(key.values()),
    ).fetchone()
    return None if row is None else from_row(answer, row)
