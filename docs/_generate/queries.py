"""What can be asked, with the types of question and answer, read off the services that answer."""

from __future__ import annotations

from importlib import import_module
from types import NoneType
from typing import Any, get_args, get_type_hints

import msgspec

from aggregates.catalogue import Catalogue
from engine.endpoints import PlanReply, PlanRequest, SecretReply, SecretRequest, WorkersReply
from engine.orphans import (
    AdoptOrphanReply,
    AdoptOrphanRequest,
    DeleteOrphanReply,
    DeleteOrphanRequest,
    OrphansReply,
    OrphansRequest,
)
from projections.answers import HeartbeatAnswer, ListAnswer, TroublesAnswer, WatchAnswer
from projections.listing import ListRequest
from projections.questions import QUESTIONS, GetInstance, GetNumbers, WatchRequest


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """No arguments: an empty object, or an empty body."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A query: what is asked, what is answered, and of which records a list consists."""

    model: str
    verb: str
    request: Any
    reply: Any
    record: Any = None
    says: str

    @property
    def name(self) -> str:
        """As it is called: `instances.get`."""
        return f"{self.model}.{self.verb}"


WORKER = (
    Query(
        model="secrets",
        verb="put",
        request=SecretRequest,
        reply=SecretReply,
        says="Keeps a secret and answers the reference to send in commands. It is stored nowhere on the way.",
    ),
    Query(
        model="instances",
        verb="plan",
        request=PlanRequest,
        reply=PlanReply,
        says="What a command would do, or why it would be refused. Changes nothing.",
    ),
    Query(
        model="catalogue",
        verb="get",
        request=Nothing,
        reply=Catalogue,
        says="What the cloud behind the engine offers.",
    ),
    Query(
        model="workers",
        verb="list",
        request=Nothing,
        reply=WorkersReply,
        says="The workers that live, and which ranges of partitions each of them owns.",
    ),
    Query(
        model="orphans",
        verb="list",
        request=OrphansRequest,
        reply=OrphansReply,
        says="What the cloud holds of ours that no instance has.",
    ),
    Query(
        model="orphans",
        verb="delete",
        request=DeleteOrphanRequest,
        reply=DeleteOrphanReply,
        says="Has one of them removed, by the worker that owns its instance's range, and answers when it is gone.",
    ),
    Query(
        model="orphans",
        verb="adopt",
        request=AdoptOrphanRequest,
        reply=AdoptOrphanReply,
        says="Has one of them recorded as its instance's own, where what was recorded is not there any more.",
    ),
)


def queries() -> list[Query]:
    """All of them: the worker's, then those of the read models."""
    found = list(WORKER)
    for model, question in QUESTIONS.items():
        record = _record(model)
        found.append(Query(model=model, verb="get", request=question.get, reply=record, says=f"One of {model}."))
        if question.listing is not None:
            found.append(_list(model, record))
        found.append(_watch(model, record))
    found.append(
        Query(
            model="troubles",
            verb="get",
            request=GetNumbers,
            reply=TroublesAnswer,
            says="What may need a person: parked, overdue and struggling operations, instances down or drifted.",
        )
    )
    found.append(
        Query(
            model="heartbeats",
            verb="get",
            request=GetInstance,
            reply=HeartbeatAnswer,
            says="The last beat of an instance and its age.",
        )
    )
    return [*found, _list("heartbeats", HeartbeatAnswer), _watch("heartbeats", HeartbeatAnswer)]


def _list(model: str, record: Any) -> Query:
    return Query(
        model=model, verb="list", request=ListRequest, reply=ListAnswer, record=record, says=f"A page of {model}."
    )


def _watch(model: str, record: Any) -> Query:
    return Query(
        model=model,
        verb="watch",
        request=WatchRequest,
        reply=WatchAnswer,
        record=record,
        says=f"What there is of {model} now, its position in the log, and the subject to follow from there on.",
    )


def _record(model: str) -> Any:
    """What `get` of the model's module returns, when there is one."""
    returned = get_type_hints(import_module(f"projections.{model}").get)["return"]
    kinds = [kind for kind in get_args(returned) if kind is not NoneType]
    return kinds[0] if kinds else returned
