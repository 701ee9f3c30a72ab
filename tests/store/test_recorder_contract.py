"""The library's own contract cases, on the recorders that we widened."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from eventsourcing.tests.persistence import (
    NonInterleavingNotificationIDsBaseCase,
    ProcessRecorderTestCase,
)

from engine.databases import DurableSQLiteDatastore
from engine.event_log import _postgres
from engine.recorders import PostgresEventRecorder, SQLiteEventRecorder


class TestSQLiteProcessRecorder(ProcessRecorderTestCase):
    """Events and one position, on SQLite."""

    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def create_recorder(self) -> SQLiteEventRecorder:
        datastore = DurableSQLiteDatastore(f"file:{self.directory.name}/{uuid4().hex}.db")
        self.addCleanup(datastore.close)
        recorder = SQLiteEventRecorder(datastore)
        recorder.create_table()
        return recorder


@pytest.mark.usefixtures("fresh_schema")
class TestPostgresProcessRecorder(ProcessRecorderTestCase):
    """Events and one position, on PostgreSQL."""

    url: str

    def create_recorder(self) -> PostgresEventRecorder:
        datastore = _postgres(self.url)
        self.addCleanup(datastore.close)
        recorder = PostgresEventRecorder(datastore)
        recorder.create_table()
        return recorder


@pytest.mark.usefixtures("fresh_schema")
class TestPostgresNotificationIds(NonInterleavingNotificationIDsBaseCase):
    """Positions of one transaction are not mixed with another's: a reader that follows them misses none."""

    insert_num = 500
    url: str

    def create_recorder(self) -> PostgresEventRecorder:
        datastore = _postgres(self.url)
        self.addCleanup(datastore.close)
        recorder = PostgresEventRecorder(datastore)
        recorder.create_table()
        return recorder


class TestSQLiteNotificationIds(NonInterleavingNotificationIDsBaseCase):
    """The same on SQLite."""

    insert_num = 500

    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def create_recorder(self) -> SQLiteEventRecorder:
        datastore = DurableSQLiteDatastore(f"file:{Path(self.directory.name)}/events.db")
        self.addCleanup(datastore.close)
        recorder = SQLiteEventRecorder(datastore)
        recorder.create_table()
        return recorder


@pytest.fixture
def fresh_schema(request: pytest.FixtureRequest, postgres: str) -> Any:
    """Give the test case's instance a schema of its own."""
    schema = f"contract_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    request.instance.url = f"{postgres}?schema={schema}"
