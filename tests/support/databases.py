"""Using a tenant's database as the tenant would: connect over TCP with a password, write a row, read it back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import pymysql
import redis

USER = "app"


class Database:
    """One instance's database, reached with its user's password."""

    def __init__(self, instance: dict[str, Any], password: str) -> None:
        self.datastore: str = instance["datastore"]
        self.address: str = instance["address"]
        self.port: int = instance["port"]
        self._password = password

    def write(self, key: str, value: str) -> None:
        """Keep the value under the key."""
        self._tried(lambda: getattr(self, f"_write_{self.datastore}")(key, value))

    def read(self, key: str) -> str | None:
        """The value under the key."""
        found = self._tried(lambda: getattr(self, f"_read_{self.datastore}")(key))
        return None if found is None else str(found)

    def _tried(self, call: Callable[[], Any], within: float = 30) -> Any:
        """Databases start up: connections are tried again for a while."""
        deadline = time.monotonic() + within
        while True:
            try:
                return call()
            except (psycopg.OperationalError, pymysql.OperationalError, redis.ConnectionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def postgresql(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection."""
        return psycopg.connect(
            host=self.address,
            port=self.port,
            user=USER,
            password=self._password,
            dbname="app",
            connect_timeout=5,
            autocommit=True,
        )

    def mariadb(self) -> pymysql.Connection[Any]:
        """A connection."""
        return pymysql.connect(
            host=self.address,
            port=self.port,
            user=USER,
            password=self._password,
            database="app",
            connect_timeout=5,
            autocommit=True,
        )

    def redis(self) -> redis.Redis:
        """A connection."""
        return redis.Redis(host=self.address, port=self.port, username=USER, password=self._password, socket_timeout=5)

    def _write_postgresql(self, key: str, value: str) -> None:
        with self.postgresql() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (key text PRIMARY KEY, value text)")
            connection.execute(
                "INSERT INTO kept VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
            )

    def _read_postgresql(self, key: str) -> Any:
        with self.postgresql() as connection:
            row = connection.execute("SELECT value FROM kept WHERE key = %s", (key,)).fetchone()
        return row and row[0]

    def _write_mariadb(self, key: str, value: str) -> None:
        with self.mariadb() as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS kept (k varchar(64) PRIMARY KEY, v text)")
            cursor.execute("REPLACE INTO kept VALUES (%s, %s)", (key, value))

    def _read_mariadb(self, key: str) -> Any:
        with self.mariadb() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT v FROM kept WHERE k = %s", (key,))
            row = cursor.fetchone()
        return row and row[0]

    def _write_redis(self, key: str, value: str) -> None:
        with self.redis() as connection:
            connection.set(key, value)

    def _read_redis(self, key: str) -> Any:
        with self.redis() as connection:
            value: Any = connection.get(key)
        return value and value.decode()


def create_arguments(name: str, datastore: str, version: str | None, password_ref: str) -> dict[str, Any]:
    """Arguments of a create_instance with the user `app`, and its database where the datastore has any."""
    databases = [] if datastore == "redis" else [{"name": "app"}]
    return {
        "name": name,
        "flavor": "micro",
        "datastore": datastore,
        "datastore_version": version,
        "volume_size": 1,
        "databases": databases,
        "users": [{"name": USER, "password_ref": password_ref, "databases": [d["name"] for d in databases]}],
    }
