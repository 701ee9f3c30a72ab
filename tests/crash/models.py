"""Whether the read models say what the log says: followed through all deaths, against made anew from nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from engine.event_log import EventLog
from projections.base import FILE
from projections.models import MODELS
from projections.projector import rebuild


def caught_up(log: EventLog, followed: Path) -> bool:
    """Whether every model has read the whole log."""
    with sqlite3.connect(f"file:{followed / FILE}?mode=ro", uri=True) as models:
        positions = dict(models.execute("SELECT application_name, max(notification_id) FROM tracking GROUP BY 1"))
    end = log.end()
    return all(positions.get(model.name, 0) == end for model in MODELS)


def differing(log: EventLog, followed: Path, scratch: Path) -> list[str]:
    """The tables whose rows differ from those made anew in the scratch directory."""
    rebuild(log, scratch)
    old, new = _rows(followed / FILE), _rows(scratch / FILE)
    return [
        f"{table}: {len(old[table])} rows, made anew {len(new[table])}" for table in old if old[table] != new[table]
    ]


def _rows(path: Path) -> dict[str, list[Any]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as models:
        return {
            table: sorted(models.execute(f"SELECT * FROM {table}"), key=repr)
            for model in MODELS
            for table in model.tables
        }
