"""A publisher's connection: opened when first needed, kept over broker restarts, with a deadline on every call.

Guarantees that a command for which `publish` returned lies in the broker's stream, and that a repeated try is the
same message. It does not tell a broker that is down from one that is slow: both end as a clear error in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import PubAck

from engine.broker import BrokerError, BrokerSettings, connect
from engine.client.errors import ClientError, InvalidCommand, NotPublished, QueryFailed, TimedOut, Unreachable
from engine.clock import monotonic
from engine.credentials import inbox_prefix
from engine.state import StateDirectory

DEFAULT_URL = "nats://127.0.0.1:4222"
T = TypeVar("T")
_TRY = 5.0  # seconds for one try of a call; a lost connection is noticed at the next one
_ABSENT_GRACE = 2.0  # seconds for a stream or a responder to come (back) after a restart
_PAUSE = 0.1  # seconds before an absent responder is asked again; doubled with each try
_STREAM_FULL = frozenset({10047, 10077})  # the stream's or the account's storage is used up
_TOO_LARGE = 10054


class Connection:
    """One connection for commands and queries; `timeout` is the limit of a call that has none of its own.

    `inbox_prefix` is where the broker lets this user be answered; the client's own default if not given.
    """

    def __init__(
        self,
        broker: BrokerSettings | str = DEFAULT_URL,
        *,
        inbox_prefix: str | None = None,
        timeout: float = 10.0,
        name: str = "holdfast-client",
    ) -> None:
        self.timeout = timeout
        self._settings = BrokerSettings(url=broker) if isinstance(broker, str) else broker
        self._inbox_prefix = inbox_prefix
        self._name = name
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._inbox: str | None = None
        self._decisions: dict[str, asyncio.Future[bytes]] = {}

    @classmethod
    def local(cls, state: StateDirectory, user: str = "publisher", **options: Any) -> Self:
        """To the embedded broker of a state directory on this machine, as one of its users."""
        seed = state.credentials / f"{user}.nk"
        try:
            url = (state.broker / "url").read_text().strip()
            seed.read_bytes()
        except FileNotFoundError:
            raise Unreachable(
                "no_engine",
                f"no engine has been started on the state directory {state.root}; run `holdfast up`, or name another "
                "state directory or a broker",
            ) from None
        except (OSError, ValueError) as e:
            raise Unreachable(
                "unauthorised", f"the state directory {state.root} cannot be read ({e}); act as the engine's own user"
            ) from None
        ca = state.broker / "ca.pem"
        settings = BrokerSettings(url=url, seed_file=seed, tls_ca=ca if ca.exists() else None)
        return cls(settings, inbox_prefix=inbox_prefix(user), **options)

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close it; what was acknowledged stays with the broker."""
        client, self._client, self._inbox = self._client, None, None
        if client is not None:
            await client.close()

    async def publish(self, subject: str, body: bytes, headers: dict[str, str], timeout: float | None = None) -> PubAck:
        """Put a command into its stream and return the broker's durable acknowledgement."""
        deadline = monotonic() + (timeout or self.timeout)
        absent_until = monotonic() + _ABSENT_GRACE
        client = await self._open()
        while (left := deadline - monotonic()) > 0:
            try:
                return await _cancellable(
                    client.jetstream().publish(subject, body, timeout=min(left, _TRY), headers=headers)
                )
            except nats.errors.MaxPayloadError:
                raise InvalidCommand(
                    "too_large", f"the command has {len(body)} bytes, more than the broker takes; send less"
                ) from None
            except nats.js.errors.NoStreamResponseError:
                if monotonic() >= absent_until:
                    raise NotPublished(
                        "no_stream", f"no stream takes {subject}; start the engine, which makes it"
                    ) from None
                await asyncio.sleep(0.1)
            except nats.js.errors.ServiceUnavailableError as e:
                if e.err_code in _STREAM_FULL or monotonic() >= absent_until:
                    raise _refused(e, len(body)) from None
                await asyncio.sleep(0.1)
            except nats.js.errors.APIError as e:
                raise _refused(e, len(body)) from None
            except nats.errors.TimeoutError:
                continue
            except nats.errors.Error:
                client = await self._open()
                await asyncio.sleep(0.1)
        raise self._expired(
            NotPublished(
                "unacknowledged",
                f"the broker did not acknowledge within {timeout or self.timeout:g} s; the command may be stored: "
                "send it again under the same command id, or ask for its operation",
            )
        )

    async def request(self, subject: str, payload: Any, timeout: float | None = None) -> Any:
        """Ask a query and return its JSON answer. Raises `QueryFailed` with the answer's own code."""
        limit = timeout or self.timeout
        deadline = monotonic() + limit
        absent_until = monotonic() + min(_ABSENT_GRACE, limit)
        failure: ClientError = TimedOut(f"{subject} did not answer within {limit:g} s; try again or wait longer")
        absent = QueryFailed("no_responders", f"nobody answers {subject}; start the engine, or wait until it is up")
        body = msgspec.json.encode(payload)
        client = await self._open()
        pause = _PAUSE
        while (left := deadline - monotonic()) > 0:
            try:
                answer = await _cancellable(client.request(subject, body, timeout=left))
            except nats.errors.NoRespondersError:
                failure = absent
                if monotonic() >= absent_until:
                    break
                await asyncio.sleep(pause)
                pause *= 2
            except nats.errors.TimeoutError:
                break
            except nats.errors.MaxPayloadError:
                raise InvalidCommand("too_large", f"the question has {len(body)} bytes; ask for less") from None
            except nats.errors.Error:
                client = await self._open()
                await asyncio.sleep(0.1)
            else:
                return _answer(subject, answer)
        raise self._expired(failure)

    async def expect_decision(self, command_id: str) -> str:
        """The subject to which the engine may send the decision; `decision` waits for what comes there."""
        client = await self._open()
        if self._inbox is None:
            self._inbox = inbox = client.new_inbox()
            await client.subscribe(f"{inbox}.*", cb=self._decided)
        if command_id not in self._decisions:
            self._decisions[command_id] = asyncio.get_running_loop().create_future()
        return f"{self._inbox}.{command_id}"

    async def decision(self, command_id: str) -> bytes:
        """Wait, without end, for the decision sent to the inbox; it comes at most once, so ask as well."""
        future = self._decisions.get(command_id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
        return await asyncio.shield(future)

    def forget_decision(self, command_id: str) -> None:
        """Nobody waits for it any more."""
        future = self._decisions.pop(command_id, None)
        if future is not None and not future.done():
            future.cancel()

    @asynccontextmanager
    async def follow(self, subject: str, seen: Callable[[], None]) -> AsyncIterator[None]:
        """Call `seen` at each message of a subject while in the block; a hint only, since messages can be missed."""

        async def arrived(_: Msg) -> None:
            seen()

        client = await self._open()
        subscription = await client.subscribe(subject, cb=arrived)
        try:
            yield
        finally:
            if not client.is_closed:
                await subscription.unsubscribe()

    async def _decided(self, message: Msg) -> None:
        future = self._decisions.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(message.data)

    async def _open(self) -> Client:
        async with self._opening:
            if self._client is not None and not self._client.is_closed:
                return self._client
            self._client = self._inbox = None
            try:
                self._client = await connect(
                    self._settings, name=self._name, inbox_prefix=self._inbox_prefix, timeout=self.timeout
                )
            except BrokerError as e:
                raise Unreachable(e.code.removeprefix("broker_"), e.message) from None
            except OSError as e:
                raise Unreachable("unauthorised", f"a file of the credentials cannot be read: {e}") from None
            return self._client

    def _expired(self, otherwise: ClientError) -> ClientError:
        """What to say when a call had no answer: the broker drops what a user may not do, and tells it aside."""
        cause = self._client.last_error if self._client is not None else None
        if cause is not None and "permissions violation" in str(cause).lower():
            return Unreachable("unauthorised", f"the broker does not let this user do it ({cause}); use another seed")
        return otherwise


async def _cancellable(call: Coroutine[Any, Any, T]) -> T:
    """Await a call of the NATS client. Its `wait_for` swallows a cancel that comes together with the answer."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait((task,))
        return task.result()
    finally:
        if not task.done():
            task.add_done_callback(lambda t: t.cancelled() or t.exception())
            task.cancel()


def _refused(error: nats.js.errors.APIError, size: int) -> ClientError:
    if error.err_code == _TOO_LARGE:
        return InvalidCommand("too_large", f"the command has {size} bytes, more than its stream takes; send less")
    if error.err_code in _STREAM_FULL:
        return NotPublished(
            "stream_full",
            f"the broker's storage for commands is full ({error.description}); wait until the engine has caught up, "
            "or give the stream more",
        )
    return NotPublished("broker_refused", f"the broker refused the command: {error.description} ({error.err_code})")


def _answer(subject: str, message: Msg) -> Any:
    code = (message.headers or {}).get("Nats-Service-Error-Code")
    try:
        content = msgspec.json.decode(message.data) if message.data else {}
    except msgspec.DecodeError:
        raise QueryFailed("malformed_answer", f"{subject} answered what is no JSON; is it another version?") from None
    if code is not None or (isinstance(content, dict) and content.keys() == {"code", "message"}):
        stated = content if isinstance(content, dict) else {}
        text = (message.headers or {}).get("Nats-Service-Error", "the query failed")
        raise QueryFailed(str(stated.get("code", code)), str(stated.get("message", text)))
    return content
