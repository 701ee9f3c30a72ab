"""The AsyncAPI document is whole, and what really travels is as it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import msgspec
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import ValidationError  # type: ignore[import-untyped]

from aggregates.commands import COMMANDS
from docs._generate.asyncapi import document
from docs._generate.events import recorded
from engine.event_log import Stored
from engine.mapper import MsgspecMapper
from engine.messages import CommandEnvelope, CommandSubject, GuestVerb, Heartbeat, event_subject, guest_subject
from engine.outbox import cloud_event
from tests.golden.history import DIRECTORY, read
from tests.support.given import CATALOGUE, EXAMPLES, NOON

DOCUMENT = json.loads(json.dumps(document()))
ID = UUID(int=1)


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def resolved(reference: str) -> Any:
    found = DOCUMENT
    for token in reference.removeprefix("#/").split("/"):
        found = found[token.replace("~1", "/").replace("~0", "~")]
    return found


def check(message: str, instance: Any) -> None:
    """The instance is as the message's payload says."""
    payload = DOCUMENT["components"]["messages"][message]["payload"]
    validator = Draft202012Validator({**payload, "components": DOCUMENT["components"]})
    validator.validate(instance)


def plain(subject: Any) -> Any:
    return json.loads(msgspec.json.encode(subject))


def envelope(args: Any) -> Any:
    return plain(CommandEnvelope(command_id=ID, args=args, actor="alice", issued_at=NOON, deadline=NOON))


def test_it_is_asyncapi_3() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()


def test_every_reference_leads_somewhere() -> None:
    for reference in set(references(DOCUMENT)):
        assert resolved(reference) is not None


def test_every_schema_is_a_json_schema() -> None:
    for message in DOCUMENT["components"]["messages"].values():
        Draft202012Validator.check_schema(message["payload"])
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_an_operation_names_messages_of_its_own_channel() -> None:
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        for message in operation["messages"]:
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/")


def test_every_parameter_of_an_address_is_described() -> None:
    for channel in DOCUMENT["channels"].values():
        used = {part[1:-1] for part in (channel["address"] or "").split(".") if part.startswith("{")}
        assert used == channel.get("parameters", {}).keys()


def test_every_message_is_carried_by_a_channel() -> None:
    carried = {name for channel in DOCUMENT["channels"].values() for name in channel["messages"]}
    assert carried == DOCUMENT["components"]["messages"].keys()


@pytest.mark.parametrize(("kind", "name"), COMMANDS)
def test_a_command_has_the_subject_on_which_it_is_published(kind: str, name: str) -> None:
    address = DOCUMENT["channels"][f"cmd.{kind}.{name}"]["address"]
    assert address.format(project="acme", id=ID) == str(CommandSubject("acme", kind, str(ID), name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_command_that_can_be_sent_is_as_documented(name: str) -> None:
    check(f"cmd.instance.{name}", envelope(msgspec.to_builtins(EXAMPLES[name])))


@pytest.mark.parametrize(
    "args",
    [{"new_size": 0}, {"new_size": "2"}, {}, {"new_size": 2, "surprise": 1}],
    ids=str,
)
def test_a_command_that_would_be_refused_is_not_as_documented(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        check("cmd.instance.resize_volume", envelope(args))


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.jsonl")), ids=lambda path: path.stem)
def test_a_recorded_event_is_published_as_documented(path: Any) -> None:
    mapper = MsgspecMapper()
    for position, row in enumerate(read(path).events, start=1):
        stored = Stored(
            position=position,
            aggregate_id=UUID(str(row.originator_id)),
            version=row.originator_version,
            topic=row.topic,
            event=mapper.to_domain_event(row),
        )
        kind, _, name = row.topic.partition(".")
        published = cloud_event(stored, "acme", kind, name)
        check(f"evt.{row.topic}", plain(published))
        address = DOCUMENT["channels"][f"evt.{row.topic}"]["address"]
        assert address.format(project="acme", id=ID) == event_subject("acme", kind, ID, name)


def test_an_event_says_no_more_than_is_documented() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for event in recorded().values():
        library = {"originator_id", "originator_version", "originator_topic", "timestamp"}
        assert not library & schemas[event.__name__]["properties"].keys()


@pytest.mark.parametrize("verb", GuestVerb)
def test_an_agent_is_asked_on_the_documented_subject(verb: GuestVerb) -> None:
    address = DOCUMENT["channels"][f"guest.{verb}"]["address"]
    assert address.format(instance_id=ID) == guest_subject(ID, verb)


def test_what_is_offered_is_answered_as_documented() -> None:
    check("qry.catalogue.get.reply", plain(CATALOGUE))


def test_a_heartbeat_is_as_documented() -> None:
    beat = Heartbeat(instance_id=ID, boot="b", sequence=1, sent_at=NOON, interval=1.0, status="HEALTHY")  # type: ignore[arg-type]
    check("hb", plain(beat))
