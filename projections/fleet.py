"""The fleet in numbers: a project's instances and operations, counted when asked.

Has no rows of its own: it is as new as `instances` and `operations`, and never disagrees with them.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from engine.messages import Outcome
from projections.answers import FleetAnswer


def get(connection: sqlite3.Connection, project: str) -> FleetAnswer:
    """The numbers of the project."""
    groups = connection.execute(
        "SELECT status, health, datastore, datastore_version, host, count(*) AS number, sum(ram) AS ram, "
        "sum(volume_size) AS volume_size FROM instances WHERE project = ? AND deleted = 0 "
        "GROUP BY status, health, datastore, datastore_version, host",
        (project,),
    ).fetchall()
    datastores: dict[str, dict[str, int]] = {}
    for datastore in {group["datastore"] for group in groups}:
        of_it = [group for group in groups if group["datastore"] == datastore]
        datastores[datastore] = _counts(of_it, "datastore_version")
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
        instances=sum(group["number"] for group in groups),
        statuses=_counts(groups, "status"),
        healths=_counts(groups, "health"),
        datastores=datastores,
        hosts=_counts(groups, "host"),
        ram=sum(group["ram"] for group in groups),
        volume_size=sum(group["volume_size"] for group in groups),
        running=outcomes.get(Outcome.RUNNING, 0),
        parked=parked["number"],
        failed=outcomes.get(Outcome.FAILED, 0),
        done=outcomes.get(Outcome.DONE, 0),
        cancelled=outcomes.get(Outcome.CANCELLED, 0),
    )


def _counts(groups: Sequence[sqlite3.Row], column: str) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group in groups:
        if group[column] is not None:
            counts[group[column]] += group["number"]
    return dict(counts)
