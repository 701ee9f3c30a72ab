"""asyncapi.json: AsyncAPI 3.0 of all that travels over NATS, from the types that encode and decode it.

Said from the engine's side: it receives commands, queries and heartbeats, sends events, decisions and dead letters,
and asks guest agents.
"""

from __future__ import annotations

import json
from typing import Any

from aggregates.commands import COMMANDS
from docs._generate.events import recorded
from docs._generate.queries import Query, queries
from docs._generate.schema import components, facts
from docs._generate.text import doc, first
from engine.messages import (
    MAX_BODY,
    MSG_ID,
    PARTITIONS,
    PREFIX,
    PROJECT_PATTERN,
    REPLY_TO,
    AdmitReplicaArgs,
    AwaitPositionArgs,
    CloudEvent,
    CommandEnvelope,
    ConfigureSourceArgs,
    DeadLetter,
    Decision,
    DismissReplicaArgs,
    EnrolReply,
    EnrolRequest,
    ErrorReply,
    FollowSourceArgs,
    GrowArgs,
    GuestReply,
    GuestRequest,
    GuestVerb,
    Heartbeat,
    PrepareArgs,
    PromoteReplicaArgs,
    RebuildArgs,
    ReplicationArgs,
    SeedReplicaArgs,
    StartArgs,
    StopArgs,
    enrolment_subject,
)

VERBS: dict[GuestVerb, Any] = {
    GuestVerb.PREPARE: PrepareArgs,
    GuestVerb.REBUILD: RebuildArgs,
    GuestVerb.STOP: StopArgs,
    GuestVerb.START: StartArgs,
    GuestVerb.RESTART: None,
    GuestVerb.GROW: GrowArgs,
    GuestVerb.ADMIT_REPLICA: AdmitReplicaArgs,
    GuestVerb.DISMISS_REPLICA: DismissReplicaArgs,
    GuestVerb.CONFIGURE_SOURCE: ConfigureSourceArgs,
    GuestVerb.SEED_REPLICA: SeedReplicaArgs,
    GuestVerb.FOLLOW_SOURCE: FollowSourceArgs,
    GuestVerb.DETACH_REPLICA: ReplicationArgs,
    GuestVerb.AWAIT_POSITION: AwaitPositionArgs,
    GuestVerb.PROMOTE_REPLICA: PromoteReplicaArgs,
    GuestVerb.FENCE_SOURCE: ReplicationArgs,
    GuestVerb.UNFENCE_SOURCE: ReplicationArgs,
    GuestVerb.REPORT: None,
}
PARAMETERS = {
    "project": "The project, letters, digits, - and _ only, at most 64: " + PROJECT_PATTERN,
    "id": "The aggregate's UUID, as its canonical text: it chooses the partition.",
    "instance_id": "The instance's UUID.",
    "code": "Why it is no command, a stable code.",
}
HEADERS = {
    "type": "object",
    "properties": {
        MSG_ID: {
            "type": "string",
            "description": "`<project>:<command_id>:<first 16 of the body's SHA-256, hexadecimal>`. Only a saving.",
        },
        REPLY_TO: {
            "type": "string",
            "description": "A subject to which the decision is sent once, at most once. It can always be asked for.",
        },
    },
}
ABOUT = (
    "Commands go onto a JetStream stream and are decided in order, once each. Events are published as CloudEvents. "
    "Queries are core NATS requests. Bodies are JSON; a command's body has at most "
    f"{MAX_BODY // 1024} KiB; an aggregate's id chooses one of {PARTITIONS} partitions."
)


def page() -> str:
    """The document."""
    return json.dumps(document(), indent=1, ensure_ascii=False, sort_keys=False)


def document() -> dict[str, Any]:
    """The document as data."""
    return _Document().whole()


class _Document:
    """One making of the document: channels, operations and messages as they are added."""

    def __init__(self) -> None:
        self._events = recorded()
        self._queries = queries()
        types = [
            *COMMANDS.values(),
            *self._events.values(),
            *(t for q in self._queries for t in (q.request, q.reply, q.record) if t is not None),
            *(t for t in VERBS.values() if t is not None),
            CommandEnvelope, CloudEvent, DeadLetter, Decision, ErrorReply, GuestRequest, GuestReply, Heartbeat,
            EnrolRequest, EnrolReply,
        ]  # fmt: skip
        self._refs, self._schemas = components(types)
        for event in self._events.values():
            self._schemas[event.__name__] = facts(self._schemas[event.__name__])
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        self._add_commands()
        self._add_events()
        self._add_dead_letters()
        for query in self._queries:
            self._add_query(query)
        self._add_guests()
        self._add_enrolment()
        return {
            "asyncapi": "3.0.0",
            "info": {
                "title": "Holdfast",
                "version": PREFIX.rpartition(".")[2].removeprefix("v") + ".0.0",
                "description": ABOUT,
                "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            },
            "defaultContentType": "application/json",
            "channels": self._channels,
            "operations": self._operations,
            "components": {"schemas": self._schemas, "messages": self._messages},
        }

    # --- parts ----------------------------------------------------------------------------------------------------

    def _message(self, name: str, payload: Any, says: str, **more: Any) -> None:
        self._messages[name] = {"name": name, "summary": says, "payload": payload, **more}

    def _channel(self, name: str, address: str | None, messages: list[str], says: str) -> None:
        channel: dict[str, Any] = {"address": address, "description": says}
        channel["messages"] = {each: {"$ref": f"#/components/messages/{each}"} for each in messages}
        used = {p: {"description": text} for p, text in PARAMETERS.items() if address and f"{{{p}}}" in address}
        if used:
            channel["parameters"] = used
        self._channels[name] = channel

    def _operation(self, name: str, action: str, channel: str, messages: list[str], says: str, **more: Any) -> None:
        self._operations[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel}"},
            "summary": says,
            "messages": _of(channel, messages),
            **more,
        }

    def _narrowed(self, whole: type, field: str, part: Any) -> dict[str, Any]:
        """The schema of `whole`, with one field known better."""
        return {"allOf": [self._refs[whole], {"type": "object", "properties": {field: part}}]}

    def _add_commands(self) -> None:
        self._message("decision", self._refs[Decision], first(Decision))
        self._channel("decision", None, ["decision"], f"The subject that the header {REPLY_TO} names.")
        for (kind, name), command in COMMANDS.items():
            key = f"cmd.{kind}.{name}"
            payload = self._narrowed(CommandEnvelope, "args", self._refs[command])
            self._message(key, payload, first(command), headers=HEADERS)
            self._channel(key, f"{PREFIX}.cmd.{{project}}.{kind}.{{id}}.{name}", [key], doc(command))
            self._operation(
                key,
                "receive",
                key,
                [key],
                first(command),
                reply={
                    "address": {
                        "location": f"$message.header#/{REPLY_TO}",
                        "description": "Optional: without the header no decision is sent.",
                    },
                    "channel": {"$ref": "#/channels/decision"},
                    "messages": _of("decision", ["decision"]),
                },
            )

    def _add_events(self) -> None:
        for topic, event in self._events.items():
            key = f"evt.{topic}"
            payload = self._narrowed(CloudEvent, "data", self._refs[event])
            self._message(key, payload, first(event), contentType="application/json")
            self._channel(key, f"{PREFIX}.evt.{{project}}.{event.kind}.{{id}}.{event.__name__}", [key], doc(event))
            self._operation(key, "send", key, [key], first(event))

    def _add_dead_letters(self) -> None:
        self._message("dlq", self._refs[DeadLetter], first(DeadLetter))
        self._channel("dlq", f"{PREFIX}.dlq.{{project}}.{{code}}", ["dlq"], doc(DeadLetter))
        self._operation("dlq", "send", "dlq", ["dlq"], first(DeadLetter))

    def _add_query(self, query: Query) -> None:
        key = f"qry.{query.name}"
        self._message(f"{key}.request", self._refs[query.request], query.says)
        self._message(f"{key}.reply", self._reply(query), query.says)
        self._message("error", self._refs[ErrorReply], first(ErrorReply))
        self._channel(key, f"{PREFIX}.qry.{{project}}.{query.name}", [f"{key}.request"], query.says)
        answers = [f"{key}.reply", "error"]
        self._channel(f"{key}.reply", None, answers, "The reply subject of the NATS request.")
        self._operation(
            key,
            "receive",
            key,
            [f"{key}.request"],
            query.says,
            reply={"channel": {"$ref": f"#/channels/{key}.reply"}, "messages": _of(f"{key}.reply", answers)},
        )

    def _reply(self, query: Query) -> dict[str, Any]:
        whole: dict[str, Any] = self._refs[query.reply]
        if query.record is None:
            return whole
        items: dict[str, Any] = {"items": {"type": "array", "items": self._refs[query.record]}}
        if query.verb == "watch":
            items["item"] = self._refs[query.record]
        return {"allOf": [whole, {"type": "object", "properties": items}]}

    def _add_enrolment(self) -> None:
        self._message("enrol", self._refs[EnrolRequest], first(EnrolRequest))
        self._message("enrol.reply", self._refs[EnrolReply], first(EnrolReply))
        self._channel("enrol", enrolment_subject(), ["enrol"], doc(EnrolRequest))
        self._channel("enrol.reply", None, ["enrol.reply"], "The reply subject of the NATS request.")
        self._operation(
            "enrol",
            "receive",
            "enrol",
            ["enrol"],
            first(EnrolRequest),
            reply={"channel": {"$ref": "#/channels/enrol.reply"}, "messages": _of("enrol.reply", ["enrol.reply"])},
        )

    def _add_guests(self) -> None:
        if missing := set(GuestVerb) - VERBS.keys():
            raise TypeError(f"the documents need the arguments of: {sorted(missing)}")
        self._message("hb", self._refs[Heartbeat], first(Heartbeat))
        self._channel("hb", f"{PREFIX}.hb.{{instance_id}}", ["hb"], doc(Heartbeat))
        self._operation("hb", "receive", "hb", ["hb"], first(Heartbeat))
        self._message("guest.reply", self._refs[GuestReply], first(GuestReply))
        self._channel("guest.reply", None, ["guest.reply"], "The reply subject of the NATS request.")
        for verb, args in VERBS.items():
            key = f"guest.{verb}"
            part = {"type": "object", "maxProperties": 0} if args is None else self._refs[args]
            says = f"The agent is asked to {verb}." if args is None else first(args)
            self._message(key, self._narrowed(GuestRequest, "args", part), says)
            self._channel(key, f"{PREFIX}.guest.{{instance_id}}.{verb}", [key], doc(GuestRequest))
            self._operation(
                key,
                "send",
                key,
                [key],
                says,
                reply={
                    "channel": {"$ref": "#/channels/guest.reply"},
                    "messages": _of("guest.reply", ["guest.reply"]),
                },
            )


def _of(channel: str, messages: list[str]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/{channel}/messages/{each}"} for each in messages]
