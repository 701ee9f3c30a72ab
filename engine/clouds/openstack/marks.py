"""How a resource is known as ours: a name that follows from the instance, and a mark set by the call that makes it.

Nova and Cinder keep the mark as metadata, Neutron as the description: its tags are, but for ports, set by a call of
their own. A server group can bear none: its name has to do. Names are nobody's own: what bears one without the mark is
somebody else's, and is neither used nor removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar
from uuid import UUID

from engine.clouds.port import FinalError

INSTANCE = "holdfast_instance"
PROJECT = "holdfast_project"
TAG = "holdfast"

R = TypeVar("R")


def metadata(instance_id: UUID, project: str) -> dict[str, str]:
    """The mark as metadata."""
    return {INSTANCE: str(instance_id), PROJECT: project}


def description(instance_id: UUID) -> str:
    """The mark as a description; all that bear it can be listed by it."""
    return f"{INSTANCE}={instance_id}"


def tags(instance_id: UUID, project: str) -> list[str]:
    """The mark as tags."""
    return [TAG, f"{INSTANCE}={instance_id}", f"{PROJECT}={project}"]


def in_metadata(instance_id: UUID, found: Mapping[str, str] | None) -> bool:
    """Whether the metadata bear the instance's mark."""
    return (found or {}).get(INSTANCE) == str(instance_id)


def in_description(instance_id: UUID, found: str | None) -> bool:
    """Whether the description is the instance's mark."""
    return found == description(instance_id)


def instance(marked: str | None) -> UUID | None:
    """The instance that a mark names."""
    try:
        return UUID(marked) if marked else None
    except ValueError:
        return None


def described(found: str | None) -> UUID | None:
    """The instance whose mark the description is."""
    return instance((found or "").removeprefix(f"{INSTANCE}=")) if (found or "").startswith(f"{INSTANCE}=") else None


def ours(kind: str, name: str, found: Iterable[R], is_ours: Callable[[R], bool]) -> list[R]:
    """Those of this name that bear the mark. Raises `FinalError` when there are only others: they are not adopted."""
    there = list(found)
    marked = [each for each in there if is_ours(each)]
    if there and not marked:
        ids = ", ".join(str(getattr(each, "id", "")) for each in there)
        raise FinalError(
            "name_taken",
            f"there is a {kind} {name} that Holdfast has not made ({ids}): rename or remove it, then try again",
        )
    return marked
