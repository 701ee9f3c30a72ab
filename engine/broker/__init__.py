"""The broker as the engine uses it: connections, streams, publishing. What is public of them stands here."""

from engine.broker.connection import BrokerError, BrokerSettings, SecureClient, connect, shown
from engine.broker.publishing import Message, Publisher
from engine.broker.streams import (
    COMMAND_STREAM,
    DEAD_LETTER_STREAM,
    DEDUPLICATION,
    EVENT_STREAM,
    MAX_MESSAGE,
    MIB,
    STORED_COMMANDS,
    ensure_streams,
    partition_of,
    require_durable,
)

__all__ = [
    "COMMAND_STREAM",
    "DEAD_LETTER_STREAM",
    "DEDUPLICATION",
    "EVENT_STREAM",
    "MAX_MESSAGE",
    "MIB",
    "STORED_COMMANDS",
    "BrokerError",
    "BrokerSettings",
    "Message",
    "Publisher",
    "SecureClient",
    "connect",
    "ensure_streams",
    "partition_of",
    "require_durable",
    "shown",
]
