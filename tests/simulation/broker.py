"""A broker in memory that loses, delays and drops as nats-server does, behind the real client's own methods.

Each connection keeps its order and every hop takes a moment. What was on its way when a connection broke is lost,
consumers of a broker that was restarted are gone, its streams are not. It syncs nothing: loss of power is not shown.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any

from engine.clock import Now
from tests.simulation.connection import SimulatedClient
from tests.simulation.streams import NANOSECONDS, ApiError, Consumer, Headers, Pull, Stored, Stream, matches, timestamp
from tests.simulation.virtual_time import virtual

API = "$JS.API."
RECONNECT = (0.05, 1.0)  # seconds until a lost client comes back, or tries again
LEAST_HOP, MEAN_HOP = 0.0001, 0.0005  # seconds from client to broker or back

_NO_RESPONDERS: Headers = {"Status": "503"}


class _Interest:
    """One subscription of one client."""

    __slots__ = ("client", "pattern", "queue", "sid", "subject")

    def __init__(self, client: SimulatedClient, subject: str, queue: str, sid: int) -> None:
        self.client = client
        self.subject = subject
        self.queue = queue
        self.sid = sid
        self.pattern = matches(subject) if "*" in subject or ">" in subject else None


class Broker:
    """The far side of all connections. `ack_loss`: the part of publishers' acknowledgements that get lost."""

    def __init__(self, random: Random, now: Now) -> None:
        self.up = True
        self.slowness = 1.0
        self.ack_loss = 0.0
        self.streams: dict[str, Stream] = {}
        self.clients: list[SimulatedClient] = []
        self.faults: Counter[str] = Counter()
        self._random = random
        self._now = now
        self._exact: dict[str, list[_Interest]] = {}
        self._wild: list[_Interest] = []
        self._heard: dict[str, list[_Interest]] = {}
        self._named = 0
        self._batches: dict[str, list[tuple[str, bytes, Headers]]] = {}

    # --- for the world --------------------------------------------------------------------------------------------

    async def connect(self, name: str) -> SimulatedClient:
        """A connection for the running process, made as soon as the broker is up."""
        client = SimulatedClient(self, name)
        while not self.up:
            await asyncio.sleep(self._random.uniform(*RECONNECT))
        self.clients.append(client)
        return client

    def restart(self, downtime: float) -> None:
        """Go away at once, with all consumers and what is on its way, and come back after so many seconds."""
        self.up = False
        for client in list(self.clients):
            self.disconnect(client)
        for name, stream in list(self.streams.items()):
            stream.consumers.clear()
            if stream.config.get("storage") == "memory":
                del self.streams[name]
        self._batches.clear()
        self.schedule(downtime, self._rise)

    def disconnect(self, client: SimulatedClient) -> None:
        """Break one connection; what is on its way is lost, and the client comes back by itself."""
        self._forget(client)
        client.lost()

    def drop(self, client: SimulatedClient) -> None:
        """The client has closed its connection, or its process is dead."""
        self._forget(client)
        client.gone()
        if client in self.clients:
            self.clients.remove(client)

    def _rise(self) -> None:
        self.up = True

    def schedule(self, delay: float, action: Callable[..., Any], *arguments: Any) -> None:
        """Do something later that belongs to no process."""
        virtual().call_later(delay, action, *arguments, context=Context())

    def hop(self) -> float:
        """How long a message takes one way."""
        return (LEAST_HOP + self._random.expovariate(1 / MEAN_HOP)) * self.slowness

    def reconnect_pause(self) -> float:
        """How long a client waits before it tries again."""
        return self._random.uniform(*RECONNECT)

    def name(self, prefix: str) -> str:
        """A name that nobody else has."""
        self._named += 1
        return f"{prefix}{self._named:022d}"

    # --- what clients send ----------------------------------------------------------------------------------------

    def subscribed(self, client: SimulatedClient, subject: str, queue: str, sid: int) -> None:
        """A client wants to hear the subject."""
        interest = _Interest(client, subject, queue, sid)
        self._heard.clear()
        if interest.pattern is None:
            self._exact.setdefault(subject, []).append(interest)
        else:
            self._wild.append(interest)

    def unsubscribed(self, client: SimulatedClient, sid: int) -> None:
        """It no longer does."""
        self._remove(lambda interest: interest.client is client and interest.sid == sid)

    def published(self, subject: str, reply: str, data: bytes, headers: Headers | None) -> None:
        """A message has arrived."""
        if subject.startswith(API):
            self._answer_api(subject.removeprefix(API), reply, data)
            return
        stream = next((s for s in self.streams.values() if s.takes(subject)), None)
        heard = self._deliver(subject, reply if stream is None else "", data, headers)
        if stream is not None:
            self._store(stream, subject, reply, data, headers or {})
        elif not heard and reply:
            self._deliver(reply, "", b"", _NO_RESPONDERS)

    def _store(self, stream: Stream, subject: str, reply: str, data: bytes, headers: Headers) -> None:
        answer: dict[str, Any]
        batch_id = headers.get("Nats-Batch-Id")
        if batch_id is not None:
            self._batches.setdefault(batch_id, []).append((subject, data, headers))
            if "Nats-Batch-Commit" not in headers:
                return
        try:
            if batch_id is None:
                sequence, duplicate = stream.store(subject, data, headers, virtual().time())
                answer = {"stream": stream.config["name"], "seq": sequence}
                if duplicate:
                    answer["duplicate"] = True
            else:
                answer = self._store_batch(stream, batch_id, int(headers["Nats-Batch-Sequence"]))
        except ApiError as refused:
            answer = refused.answer
        for consumer in stream.consumers.values():
            self._pump(consumer)
        if not reply:
            return
        if self.ack_loss and self._random.random() < self.ack_loss:
            self.faults["ack lost"] += 1
            return
        self._deliver(reply, "", json.dumps(answer).encode(), None)

    def _store_batch(self, stream: Stream, batch_id: str, count: int) -> dict[str, Any]:
        batch = self._batches.pop(batch_id)
        if len(batch) != count:
            raise ApiError(400, 10176, "atomic publish batch is incomplete")
        sequence = stream.store_batch(batch, virtual().time())
        return {"stream": stream.config["name"], "seq": sequence, "batch": batch_id, "count": count}

    def _deliver(self, subject: str, reply: str, data: bytes, headers: Headers | None) -> bool:
        """Hand it to all who hear the subject, one of each queue group; whether anybody does."""
        groups: dict[str, list[_Interest]] = {}
        heard = self._listeners(subject)
        for interest in heard:
            if interest.queue:
                groups.setdefault(interest.queue, []).append(interest)
            else:
                interest.client.send_down(interest.sid, subject, reply, data, headers)
        for members in groups.values():
            chosen = members[0] if len(members) == 1 else self._random.choice(members)
            chosen.client.send_down(chosen.sid, subject, reply, data, headers)
        return bool(heard)

    def _listeners(self, subject: str) -> list[_Interest]:
        if subject.startswith("_INBOX."):  # each is used once: nothing worth to remember
            return self._find_listeners(subject)
        known = self._heard.get(subject)
        if known is None:
            known = self._heard[subject] = self._find_listeners(subject)
        return known

    def _find_listeners(self, subject: str) -> list[_Interest]:
        wild = [i for i in self._wild if i.pattern is not None and i.pattern.fullmatch(subject)]
        return [*self._exact.get(subject, ()), *wild]

    def _forget(self, client: SimulatedClient) -> None:
        self._remove(lambda interest: interest.client is client)

    def _remove(self, gone: Callable[[_Interest], bool]) -> None:
        self._heard.clear()
        self._wild = [interest for interest in self._wild if not gone(interest)]
        for subject, interests in list(self._exact.items()):
            left = [interest for interest in interests if not gone(interest)]
            if left:
                self._exact[subject] = left
            else:
                del self._exact[subject]

    # --- JetStream's own interface --------------------------------------------------------------------------------

    def _answer_api(self, call: str, reply: str, data: bytes) -> None:
        if call.startswith("CONSUMER.MSG.NEXT."):
            name, _, consumer = call.removeprefix("CONSUMER.MSG.NEXT.").partition(".")
            self._pull(name, consumer, reply, json.loads(data))
            return
        request = json.loads(data) if data.strip() else {}
        try:
            answer = self._called(call, request)
        except ApiError as refused:
            answer = refused.answer
        if isinstance(answer, Stored):
            headers = answer.headers | {
                "Nats-Subject": answer.subject,
                "Nats-Sequence": str(answer.sequence),
            }
            self._deliver(reply, "", answer.data, headers)
        elif answer is None:
            self._deliver(reply, "", b"", {"Status": "404", "Description": "Message Not Found"})
        else:
            self._deliver(reply, "", json.dumps(answer).encode(), None)

    def _called(  # noqa: PLR0911 - one for each call
        self, call: str, request: dict[str, Any]
    ) -> dict[str, Any] | Stored | None:
        area, verb, *rest = call.split(".")
        match area, verb, rest:
            case "STREAM", "CREATE", [name]:
                return self._create_stream(name, request).info()
            case "STREAM", "UPDATE", [name]:
                self._stream(name).config.update(request)
                return self._stream(name).info()
            case "STREAM", "INFO", [name]:
                return self._stream(name).info(request.get("subjects_filter"))
            case "STREAM", "DELETE", [name]:
                self._stream(name)
                del self.streams[name]
                return {"success": True}
            case "STREAM", "PURGE", [name]:
                purged = self._stream(name).purge(request.get("seq"), request.get("filter"), request.get("keep") or 0)
                return {"success": True, "purged": purged}
            case "STREAM", "MSG", ["GET", name]:
                return self._stream(name).told(self._asked_for(self._stream(name), request))
            case "STREAM", "MSG", ["DELETE", name]:
                self._stream(name).delete(request["seq"])
                return {"success": True}
            case "DIRECT", "GET", [name, *subject]:
                return self._direct(self._stream(name), ".".join(subject), request)
            case "CONSUMER", "CREATE", [name, *_]:
                return self._create_consumer(self._stream(name), request["config"])
            case "CONSUMER", "DELETE", [name, consumer]:
                found = self._stream(name).consumers.pop(consumer, None)
                if found is None:
                    raise ApiError(404, 10014, "consumer not found")
                return {"success": True}
        raise ApiError(400, 10000, f"the simulation does not know {call}")

    def _asked_for(self, stream: Stream, request: dict[str, Any]) -> Stored | None:
        if "next_by_subj" in request:
            return stream.next_of(request["next_by_subj"], request["seq"])
        return self._direct(stream, "", request)

    def _stream(self, name: str) -> Stream:
        if name not in self.streams:
            raise ApiError(404, 10059, "stream not found")
        self.streams[name].forget(virtual().time())
        return self.streams[name]

    def _create_stream(self, name: str, config: dict[str, Any]) -> Stream:
        known = self.streams.get(name)
        if known is None:
            known = self.streams[name] = Stream(config, self._now())
        elif known.config != config:
            raise ApiError(400, 10058, "stream name already in use with a different configuration")
        return known

    def _direct(self, stream: Stream, subject: str, request: dict[str, Any]) -> Stored | None:
        if subject or "last_by_subj" in request:
            return stream.last_of(subject or request["last_by_subj"], virtual().time())
        return stream.messages.get(request["seq"])

    def _create_consumer(self, stream: Stream, config: dict[str, Any]) -> dict[str, Any]:
        name = config.get("name") or self.name("consumer")
        consumer = stream.consumers[name] = Consumer(name, config, stream, virtual().time())
        return {
            "name": name,
            "stream_name": stream.config["name"],
            "config": config,
            "created": timestamp(stream.created),
            "num_pending": consumer.pending(),
        }

    def _pull(self, stream_name: str, name: str, inbox: str, request: dict[str, Any]) -> None:
        stream = self.streams.get(stream_name)
        consumer = stream.consumers.get(name) if stream is not None else None
        now = virtual().time()
        if stream is not None and consumer is not None and consumer.idle_for_too_long(now):
            del stream.consumers[name]
            consumer = None
        if consumer is None:
            self._deliver(inbox, "", b"", _NO_RESPONDERS)
            return
        expires = request.get("expires")
        pull = Pull(
            inbox,
            request.get("batch", 1),
            bool(request.get("no_wait")),
            None if expires is None else now + expires / NANOSECONDS,
        )
        consumer.active_at = now
        consumer.waiting.append(pull)
        if pull.expires is not None:
            self.schedule(pull.expires - now, self._expire, consumer, pull)
        self._pump(consumer)

    def _expire(self, consumer: Consumer, pull: Pull) -> None:
        if pull in consumer.waiting:
            consumer.waiting.remove(pull)
            consumer.active_at = virtual().time()
            self._deliver(pull.inbox, "", b"", {"Status": "408", "Description": "Request Timeout"})

    def _pump(self, consumer: Consumer) -> None:
        """Hand out what there is to who waits, in the order of asking."""
        while consumer.waiting:
            pull = consumer.waiting[0]
            if not self._listeners(pull.inbox):
                consumer.waiting.popleft()
                continue
            stored = consumer.take()
            if stored is None:
                if pull.no_wait and (pull.got or pull.expires is None):
                    consumer.waiting.popleft()
                    self._deliver(pull.inbox, "", b"", {"Status": "404", "Description": "No Messages"})
                    continue
                return
            pull.got += 1
            pull.left -= 1
            at = int(self._now().timestamp() * NANOSECONDS)
            name = consumer.stream.config["name"]
            numbers = f"1.{stored.sequence}.{consumer.delivered}.{at}.{consumer.pending()}"
            # The inbox is where it goes; what stands in the message is the subject it was stored under.
            reply = f"$JS.ACK.{name}.{consumer.name}.{numbers}"
            for interest in self._listeners(pull.inbox):
                interest.client.send_down(interest.sid, stored.subject, reply, stored.data, stored.headers)
            if not pull.left:
                consumer.waiting.popleft()
                consumer.active_at = virtual().time()
