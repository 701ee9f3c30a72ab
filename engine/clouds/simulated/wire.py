"""What goes over the socket of a simulated cloud in a process of its own: JSON, a message a line, answers in any order.

It is for tests and trials on one machine: whoever may open the socket may do everything.
"""

from __future__ import annotations

import msgspec

from aggregates.catalogue import Catalogue
from engine.clouds.simulated.faults import Call, Fault
from engine.clouds.simulated.guests import GuestFault

LIMIT = 64 * 1024 * 1024  # bytes of a line: a ledger may be long


class AskCloud(msgspec.Struct, frozen=True, kw_only=True, tag="cloud"):
    """A call of the cloud API."""

    call: Call


class AskGuest(msgspec.Struct, frozen=True, kw_only=True, tag="guest"):
    """A request to a guest agent."""

    subject: str
    payload: bytes
    timeout: float


class Show(msgspec.Struct, frozen=True, kw_only=True, tag="show"):
    """What a test may see: `settings`, `inventory`, `ledger`, `deeds`, `injected`."""

    what: str


class Plan(msgspec.Struct, frozen=True, kw_only=True, tag="plan"):
    """Faults of calls to come."""

    call: str
    fault: Fault
    times: int


class Offer(msgspec.Struct, frozen=True, kw_only=True, tag="offer"):
    """What the cloud offers from now on."""

    catalogue: Catalogue


class PlanGuest(msgspec.Struct, frozen=True, kw_only=True, tag="plan_guest"):
    """Faults of requests to come."""

    verb: str
    fault: GuestFault
    times: int


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a client sends."""

    id: int
    body: AskCloud | AskGuest | Show | Plan | PlanGuest | Offer


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """The cloud answered with this status."""

    status: int
    words: str
    retry_after: float | None = None


class Broken(msgspec.Struct, frozen=True, kw_only=True, tag="broken"):
    """The connection that carried this question counts as broken."""

    words: str


class Nobody(msgspec.Struct, frozen=True, kw_only=True, tag="nobody"):
    """There is no agent to ask."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the server answers: the answer, unless there is an error."""

    id: int
    answer: msgspec.Raw = msgspec.Raw(b"null")
    error: Status | Broken | Nobody | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What callers must know of the far side: see `Cloud.latest_effect`, and how long to wait for an answer."""

    latest_effect: float
    deadline: float


class Injected(msgspec.Struct, frozen=True, kw_only=True):
    """How often a call met a fault."""

    call: str
    kind: str
    times: int
