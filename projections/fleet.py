"""The fleet in numbers: a project's instances and operations, counted when asked.

Has no rows of its own: it is as new as `instances` and `operations`, and never disagrees with them.
"""

from __future__ import annotations

import sqlite3

from engine.messages import Outcome
from projections.answers import FleetAnswer


def get(connection: sqlite3.Connection, project: str) -> FleetAnswer:
    """The numbers of the project."""
    totals = connection.execute(
        "SELECT count(*) AS instances, coalesce(sum(ram), 0) AS ram, coalesce(sum(volume_size), 0) AS volume_size "
        "FROM instances WHERE project = ? AND deleted = 0",
        (project,),
    ).fetchone()
    datastores: dict[str, dict[str, int]] = {}
    for row in connection.execute(
        "SELECT datastore, datastore_version, count(*) AS number FROM instances "
        "WHERE project = ? AND deleted = 0 GROUP BY datastore, datastore_version",
        (project,),
    ):
        datastores.setdefault(row["datastore"], {})[row["datastore_version"]] = row["number"]
    outcomes = {
        row["outcome"]: row["number"]
        for row in connection.execute(
            "SELECT outcome, count(*) AS number FROM operations WHERE project = ? GROUP BY outcome", (project,)
        )
    }
    parked = connection.execute(
        "SELECT count(*) AS number FROM operations WHERE project = ? AND parked = 1", (project,)
    ).fetchone()
    return FleetAnswer(
        instances=totals["instances"],
        statuses=_counts(connection, project, "status"),
        healths=_counts(connection, project, "health"),
        datastores=datastores,
        hosts=_counts(connection, project, "host"),
        ram=totals["ram"],
        volume_size=totals["volume_size"],
        running=outcomes.get(Outcome.RUNNING, 0),
        parked=parked["number"],
        failed=outcomes.get(Outcome.FAILED, 0),
        done=outcomes.get(Outcome.DONE, 0),
        cancelled=outcomes.get(Outcome.CANCELLED, 0),
    )


def _counts(connection: sqlite3.Connection, project: str, column: str) -> dict[str, int]:
    rows = connection.execute(
        f"SELECT {column}, count(*) AS number FROM instances "  # noqa: S608 - a column of ours
        f"WHERE project = ? AND deleted = 0 AND {column} IS NOT NULL GROUP BY {column}",
        (project,),
    )
    return {row[0]: row["number"] for row in rows}
