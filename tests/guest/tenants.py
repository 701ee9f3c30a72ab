"""Using a database as its tenants do: by TCP and password alone, each kind with its own driver."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Protocol

import psycopg
import pymysql
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# What a driver raises when it is refused, for whatever reason, or does not get through.
REFUSED = (psycopg.Error, pymysql.MySQLError, redis.RedisError, OSError)


class Tenant(Protocol):
    """One account's view of one database."""

    def put(self, key: str, value: str) -> None:
        """Write."""
        ...

    def get(self, key: str) -> str | None:
        """Read."""
        ...

    def keys(self) -> set[str]:
        """The keys of all that was written."""
        ...

    def memory(self) -> str:
        """The setting that follows the flavor's memory."""
        ...


class PostgreSQLTenant:
    """A table in one database."""

    def __init__(self, address: str, port: int, user: str, password: str, database: str) -> None:
        self._where: dict[str, Any] = {
            "host": address, "port": port, "user": user, "password": password, "dbname": database or "postgres",
            "connect_timeout": 10, "autocommit": True, "sslmode": "disable",
        }  # fmt: skip

    def keys(self) -> set[str]:
        with psycopg.connect(**self._where) as connection:
            return {key for (key,) in connection.execute("SELECT key FROM pairs").fetchall()}

    def _ask(self, statement: str, *values: str) -> Any:
        with psycopg.connect(**self._where) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchone() if cursor.description else None

    def put(self, key: str, value: str) -> None:
        # The table is looked for first, for `CREATE TABLE` is refused where writes are, needed or not.
        if self._ask("SELECT to_regclass('pairs')") == (None,):
            self._ask("CREATE TABLE pairs (key text PRIMARY KEY, value text)")
            self._ask("ALTER TABLE pairs ALTER value SET STORAGE EXTERNAL")
        self._ask(
            "INSERT INTO pairs VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value
        )

    def get(self, key: str) -> str | None:
        found = self._ask("SELECT value FROM pairs WHERE key = %s", key)
        return str(found[0]) if found else None

    def memory(self) -> str:
        return str(self._ask("SHOW shared_buffers")[0])


class MariaDBTenant:
    """A table in one database."""

    def __init__(self, address: str, port: int, user: str, password: str, database: str) -> None:
        self._where: dict[str, Any] = {
            "host": address, "port": port, "user": user, "password": password, "database": database or None,
            "connect_timeout": 10, "autocommit": True,
        }  # fmt: skip

    def keys(self) -> set[str]:
        with closing(pymysql.connect(**self._where)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name FROM pairs")
            return {name for (name,) in cursor.fetchall()}

    def _ask(self, statement: str, *values: str) -> Any:
        with closing(pymysql.connect(**self._where)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchone()

    def put(self, key: str, value: str) -> None:
        if self._ask("SHOW TABLES LIKE 'pairs'") is None:
            self._ask("CREATE TABLE pairs (name varchar(100) PRIMARY KEY, value longtext)")
        self._ask("REPLACE INTO pairs VALUES (%s, %s)", key, value)

    def get(self, key: str) -> str | None:
        found = self._ask("SELECT value FROM pairs WHERE name = %s", key)
        return str(found[0]) if found else None

    def memory(self) -> str:
        return str(self._ask("SELECT @@innodb_buffer_pool_size")[0])


class RedisTenant:
    """The keys of a server: there are no databases to tell apart."""

    def __init__(self, address: str, port: int, user: str, password: str) -> None:
        self._where: dict[str, Any] = {
            "host": address, "port": port, "username": user, "password": password, "socket_timeout": 10,
            "decode_responses": True, "protocol": 2, "retry": Retry(NoBackoff(), 0),
        }  # fmt: skip

    def put(self, key: str, value: str) -> None:
        with redis.Redis(**self._where) as connection:
            connection.set(key, value)

    def get(self, key: str) -> str | None:
        with redis.Redis(**self._where) as connection:
            found = connection.get(key)
            return None if found is None else str(found)

    def run(self, script: str) -> str:
        """What a script answers."""
        with redis.Redis(**self._where) as connection:
            return str(connection.eval(script, 0))

    def keys(self) -> set[str]:
        with redis.Redis(**self._where) as connection:
            return set(connection.keys("*"))

    def memory(self) -> str:
        with redis.Redis(**self._where) as connection:
            return str(connection.info("memory")["maxmemory"])
