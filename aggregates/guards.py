"""The conditions of an instance's chart: what must hold of the instance for a transition to be taken.

A guard is given the instance as it is once it knows the facts of the transition. It looks and changes nothing.
"""

from __future__ import annotations

from typing import Any

from aggregates.resources import ResourceKind


class Guards:
    """Each is named in `lifecycle.py` as `cond`."""

    def keeps_on_failure(self, subject: Any) -> bool:
        """The publisher asked to keep what was made, to look at it."""
        return bool(subject.keep_on_failure)

    def has_unanswered_calls(self, subject: Any) -> bool:
        """A call may have made something of which no answer told."""
        return subject.unanswered_until is not None

    def has_server(self, subject: Any) -> bool:
        """There is a guest that can be asked to stop its database."""
        return subject.held(ResourceKind.SERVER) is not None

    def wants_server_group(self, subject: Any) -> bool:
        """Where its server lies is bound to where others lie."""
        return subject.locality is not None

    def wants_security_group(self, subject: Any) -> bool:
        """The cloud guards who reaches it."""
        return subject.access is not None

    def may_have_security_group(self, subject: Any) -> bool:
        """It has one, or was about to get one."""
        return subject.access is not None or subject.new_access is not None

    def wants_management_port(self, subject: Any) -> bool:
        """Its agent is reached by a network of its own."""
        return subject.management_network is not None

    def wants_address(self, subject: Any) -> bool:
        """It is to be reached from outside."""
        return _is_public(subject.access)

    def may_have_address(self, subject: Any) -> bool:
        """It has one, had one, or was about to get one."""
        return subject.floating_address_id is not None or _is_public(subject.access) or _is_public(subject.new_access)

    def admits_any(self, subject: Any) -> bool:
        """There is somebody to let in."""
        return bool(subject.access.allowed_cidrs)

    def adopts_security_group(self, subject: Any) -> bool:
        """It was made before there were security groups."""
        return subject.old_access is None

    def admits_more(self, subject: Any) -> bool:
        """Networks are let in that are not yet."""
        return bool(set(subject.new_access.allowed_cidrs) - set(_admitted(subject.access)))

    def admits_less(self, subject: Any) -> bool:
        """Networks are let in that shall not be any more."""
        return bool(set(_admitted(subject.access)) - set(subject.new_access.allowed_cidrs))

    def becomes_public(self, subject: Any) -> bool:
        """It is to be reached from outside, and was not."""
        return subject.new_access.public and not _is_public(subject.access)

    def ceases_public(self, subject: Any) -> bool:
        """It is reached from outside, and shall not be."""
        return _is_public(subject.access) and not subject.new_access.public

    def wants_snapshot(self, subject: Any) -> bool:
        """The volume is to be kept as it was, and is not yet."""
        return bool(subject.snapshot) and subject.held(ResourceKind.SNAPSHOT) is None

    def may_have_snapshot(self, subject: Any) -> bool:
        """There is one, or was to be."""
        return subject.snapshot_due or subject.held(ResourceKind.SNAPSHOT) is not None

    def extends_offline(self, subject: Any) -> bool:
        """The cloud extends no volume that a server has."""
        return bool(subject.offline)


def _admitted(access: Any) -> tuple[str, ...]:
    return () if access is None else tuple(access.allowed_cidrs)


def _is_public(access: Any) -> bool:
    return access is not None and bool(access.public)
