"""Shelves: what the far side holds of one kind, now and as it was a while ago, as stale lists show it."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from engine.clock import monotonic
from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.faults import STALEST
from engine.clouds.simulated.resources import Credential, Port, Server, Volume

Resource = TypeVar("Resource", Port, Volume, Server, Credential)


class Shelf(Generic[Resource]):
    """Resources of one kind, found by id and by name, now and as they were a while ago."""

    def __init__(self) -> None:
        self._by_id: dict[str, Resource] = {}
        self._by_name: dict[str, dict[str, Resource]] = {}
        self._changes: deque[tuple[float, str, Resource | None]] = deque()  # what was there before each change

    def get(self, resource_id: str) -> Resource | None:
        """The resource."""
        return self._by_id.get(resource_id)

    def named(self, name: str | None, age: float = 0.0) -> list[Resource]:
        """Those of the name, or all, in the order in which they were made, as of so many seconds ago."""
        if age:
            return [each for each in self._before(monotonic() - age).values() if name in (None, each.name)]
        return list((self._by_id if name is None else self._by_name.get(name, {})).values())

    def put(self, resource: Resource) -> None:
        """It is there, and so."""
        self._changed(resource.id)
        self._by_id[resource.id] = resource
        self._by_name.setdefault(resource.name, {})[resource.id] = resource

    def drop(self, resource: Resource) -> None:
        """It is gone."""
        self._changed(resource.id)
        del self._by_id[resource.id]
        namesakes = self._by_name[resource.name]
        del namesakes[resource.id]
        if not namesakes:
            del self._by_name[resource.name]

    def _changed(self, resource_id: str) -> None:
        now = monotonic()
        self._changes.append((now, resource_id, self._by_id.get(resource_id)))
        while self._changes[0][0] < now - STALEST * 2:
            self._changes.popleft()

    def _before(self, moment: float) -> dict[str, Resource]:
        known = dict(self._by_id)
        for at, resource_id, before in reversed(self._changes):
            if at <= moment:
                break
            if before is None:
                known.pop(resource_id, None)
            else:
                known[resource_id] = before
        return known


def found_on(kind: str, shelf: Shelf[Resource], resource_id: str) -> Resource:
    """The resource. Raises `CloudAnswerError` 404."""
    resource = shelf.get(resource_id)
    if resource is None:
        raise CloudAnswerError(404, f"there is no {kind} {resource_id}")
    return resource
