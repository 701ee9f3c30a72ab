"""The broker: how the engine connects to it, which streams it keeps there, and where a command's partition lies.

Guarantees that a connection comes back by itself for as long as its credentials are accepted, and that a command
which the broker acknowledged is kept until the engine purges it. It does not notice a stream that was deleted and
made anew: readers compare when it was created; nor can it make a foreign broker durable: `require_durable` asks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import nats.errors
import nkeys  # type: ignore[import-untyped]
import structlog
from nats.aio.client import Client, Server
from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    PersistMode,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
    SubjectTransform,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from engine.messages import PARTITIONS, PREFIX, command_filter

COMMAND_STREAM = "HOLDFAST_COMMANDS"
EVENT_STREAM = "HOLDFAST_EVENTS"
DEAD_LETTER_STREAM = "HOLDFAST_DEAD"
STORED_COMMANDS = f"{PREFIX}.cmdp"  # followed by partition, project, kind, id, command

MIB = 1024 * 1024
MAX_MESSAGE = MIB  # headers and body; above `messages.MAX_BODY`, so that too large a command becomes a dead letter
DEDUPLICATION = 120.0  # seconds for which the broker knows a message's id

_STREAM_EXISTS = 10058
_CALL = 5.0  # seconds for one call to JetStream
_AVAILABLE_WITHIN = 30.0  # seconds for JetStream to come up after the server answers
_PING = 10
_SLOWEST_RETRY = 5.0

log = structlog.get_logger(__name__)


class BrokerError(Exception):
    """The broker cannot be used as it is. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


# --- connection ---------------------------------------------------------------------------------------------------


class BrokerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the broker is and who we are: an NKey seed, a JWT credentials file, or a user with a password, in files.

    `url` may name several servers, separated by commas. Secrets are read from files: they stand neither here nor on a
    command line. Credentials and passwords are read at every connect, so they can be replaced while the engine runs;
    a seed, which is replaced together with its user, and the files of TLS are read once.
    """

    url: str = "nats://127.0.0.1:4222"
    seed_file: Path | None = None
    creds_file: Path | None = None
    user: str | None = None
    password_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


async def connect(
    settings: BrokerSettings,
    *,
    name: str,
    inbox_prefix: str | None = None,
    timeout: float | None = 30.0,
    on_closed: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """Connect, trying for `timeout` seconds (None: for ever), and reconnect for ever from then on.

    `on_closed` is called when the connection has ended for good: closed by us, or by an error of the protocol that
    the broker sent. Such a client does not come back; make a new one.
    """
    client = _Client(has_certificate=settings.tls_cert is not None)
    watch = _Watch(client, name, shown(settings.url), on_closed)
    options = _credentials(settings)
    if inbox_prefix is not None:
        options["inbox_prefix"] = inbox_prefix
    try:
        async with asyncio.timeout(timeout):
            await client.connect(
                [each.strip() for each in settings.url.split(",")],
                name=name,
                error_cb=watch.error,
                disconnected_cb=watch.disconnected,
                reconnected_cb=watch.reconnected,
                closed_cb=watch.closed,
                reconnect_to_server_handler=_next_server,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0,  # the pauses are made by `_Watch.error` and `_next_server`, which grow them
                ping_interval=_PING,
                max_outstanding_pings=2,
                connect_timeout=5,
                drain_timeout=5,
                **options,
            )
    except TimeoutError:
        watch.given_up = True
        await client.close()
        raise watch.unreachable(timeout) from None
    except BaseException:
        watch.given_up = True
        await client.close()
        raise
    watch.connected = True
    log.info("broker_connected", connection=name, broker=watch.url)
    return client


class _Client(Client):
    def __init__(self, *, has_certificate: bool) -> None:
        super().__init__()
        self._has_certificate = has_certificate

    async def close(self) -> None:
        """The library's own raises when the transport was lost a moment ago, and sends what is pending without end."""
        with contextlib.suppress(OSError):  # a timeout is one
            async with asyncio.timeout(_CALL):
                await super().close()

    async def flush(self, timeout: int = 10) -> None:
        """The library's own sends its question ahead of what is pending, so that its answer says nothing of that."""
        try:
            await asyncio.wait_for(self._flush_pending(force_flush=True), timeout)
        except TimeoutError:
            raise nats.errors.FlushTimeoutError from None
        await super().flush(timeout)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """The library's own goes on in clear, whatever was asked for, when a server does not insist on TLS."""
        if initial_connection and self._wants_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise nats.errors.SecureConnWantedError
            info["tls_required"] = True
        if initial_connection and info.get("tls_verify") and not self._has_certificate:
            raise _CertificateWantedError  # said here, since a broker's own word often comes too late to be read
        await super()._process_info(info, initial_connection)

    @property
    def _wants_tls(self) -> bool:
        server = self._current_server
        return "tls" in self.options or (server is not None and server.uri.scheme == "tls")


class _CertificateWantedError(nats.errors.Error):
    def __str__(self) -> str:
        return "it wants a client certificate"


class _Watch:
    """Logs what happens to one connection, each change once, and slows the tries down until the first success."""

    def __init__(
        self, client: Client, name: str, url: str, on_closed: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.connected = False
        self.given_up = False
        self.url = url
        self._client = client
        self._name = name
        self._on_closed = on_closed
        self._failures = 0
        self._last = ""
        self._refusal = ""
        self._distrust = ""
        self._told: Exception | None = None

    async def error(self, error: Exception) -> None:
        self._told = error
        reason = str(error) or type(error).__name__
        if reason != self._last:
            log.warning("broker_error", connection=self._name, broker=self.url, error=reason)
        self._last = reason
        if _refuses(error):
            self._refusal = reason  # kept: a refusing broker may reset the connection before its reason is read
        if isinstance(error, (ssl.SSLCertVerificationError, nats.errors.SecureConnWantedError)):
            self._distrust = reason
        if not self.connected and not self.given_up:
            self._failures += 1
            await asyncio.sleep(_pause(self._failures))

    async def disconnected(self) -> None:
        if self.connected and not self._client.is_closed:
            log.warning("broker_disconnected", connection=self._name, broker=self.url)

    async def reconnected(self) -> None:
        self._last = ""
        log.info("broker_reconnected", connection=self._name, broker=self.url)

    async def closed(self) -> None:
        if not self.connected:
            return
        refused = self._client.last_error  # what ends a connection for good does not come by `error`
        if refused is None or refused is self._told:
            log.info("broker_closed", connection=self._name, broker=self.url)
        else:
            log.error("broker_closed", connection=self._name, broker=self.url, error=str(refused))
        if self._on_closed is not None:
            await self._on_closed()

    def unreachable(self, timeout: float | None) -> BrokerError:
        if self._refusal:
            return BrokerError(
                "broker_unauthorised",
                f"the broker at {self.url} refuses the credentials of {self._name} ({self._refusal}); give it a user "
                "that this broker knows",
            )
        if self._distrust:
            return BrokerError(
                "broker_untrusted",
                f"{self._name} does not trust what answers at {self.url} ({self._distrust}); name the file of the CA "
                "that signed this broker's certificate, or correct the address",
            )
        return BrokerError(
            "broker_unreachable",
            f"no broker at {self.url} took the connection {self._name} within {timeout:g} s "
            f"({self._last or 'no answer'}); start the broker or correct the address",
        )


def _refuses(error: Exception) -> bool:
    words = str(error).lower()
    by_alert = isinstance(error, ssl.SSLError) and "alert" in words
    return by_alert or "authorization" in words or isinstance(error, _CertificateWantedError)


def _pause(failures: int) -> float:
    """Grows to a few seconds and is spread, so that all agents of a restarted broker do not come at one moment."""
    slowest: float = min(_SLOWEST_RETRY, 0.1 * 2.0 ** min(failures, 10))
    return slowest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server that failed least; at once after the first loss, then slower and slower."""
    server = min(servers, key=lambda each: each.reconnects)
    return server, _pause(server.reconnects) if server.reconnects else 0.0


def _credentials(settings: BrokerSettings) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if settings.seed_file is not None:
        options["nkeys_seed_str"] = _seed(settings.seed_file)
    elif settings.creds_file is not None:
        options |= _jwt(settings.creds_file)
    elif settings.user is not None:
        options["user"] = settings.user
        if settings.password_file is not None:
            password_file = _readable(settings.password_file)
            options["password"] = lambda: password_file.read_text().strip()
    if settings.tls_ca is not None or settings.tls_cert is not None:
        options["tls"] = _tls(settings)
    return options


def _seed(path: Path) -> str:
    seed = _readable(path).read_bytes().strip()
    try:
        nkeys.from_seed(bytearray(seed)).wipe()
    except (nkeys.NkeysError, ValueError):
        raise _wrong(path, "an NKey seed") from None
    return seed.decode()


def _jwt(path: Path) -> dict[str, Any]:
    """The library's own reader of credentials never ends on a file without them, and takes no CRLF."""

    def parts() -> tuple[bytearray, bytearray]:
        found = re.findall(rb"---\s+([\w.=-]+)\s+---", path.read_bytes())
        if len(found) != 2:  # noqa: PLR2004 - the JWT and the seed
            raise nats.errors.InvalidUserCredentialsError
        return bytearray(found[0]), bytearray(found[1])

    def sign(nonce: str) -> bytes:
        try:
            return base64.b64encode(nkeys.from_seed(parts()[1]).sign(nonce.encode()))
        except (nkeys.NkeysError, ValueError):
            raise nats.errors.InvalidUserCredentialsError from None

    _readable(path)
    try:
        sign("")
    except nats.errors.InvalidUserCredentialsError:
        raise _wrong(path, "a JWT and its seed, as a file of credentials does") from None
    return {"user_jwt_cb": lambda: parts()[0], "signature_cb": sign}


def _tls(settings: BrokerSettings) -> ssl.SSLContext:
    ca, cert, key = settings.tls_ca, settings.tls_cert, settings.tls_key
    for path in (ca, cert, key):
        if path is not None:
            _readable(path)
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise _wrong(ca, "a certificate of a CA") from None
    if cert is not None:
        try:
            context.load_cert_chain(cert, key, password="")  # else a terminal is asked for one
        except ssl.SSLError as e:
            raise _wrong(key or cert, f"the key of the certificate in {cert}, without a passphrase ({e.reason})") from e
    return context


def _wrong(path: Path | None, wanted: str) -> BrokerError:
    return BrokerError("credentials_unreadable", f"{path} does not hold {wanted}; name the right file")


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as e:
        raise BrokerError(
            "credentials_unreadable", f"{path} cannot be read ({e.strerror}); name the right file or give us the right"
        ) from None
    return path


def shown(url: str) -> str:
    """The servers of a URL without user and password, fit for a log."""
    parts = [urlsplit(each.strip()) for each in url.split(",")]
    return ",".join(f"{each.scheme}://{each.netloc.rpartition('@')[2]}" if each.scheme else "?" for each in parts)


# --- partitions ---------------------------------------------------------------------------------------------------


def partition_of(aggregate_id: str) -> int:
    """The partition into which the broker puts commands for this id, written as it stands in the subject: FNV-1a."""
    digest = 2166136261
    for byte in aggregate_id.encode():
        digest = ((digest ^ byte) * 16777619) & 0xFFFFFFFF
    return digest % PARTITIONS


# --- streams ------------------------------------------------------------------------------------------------------


async def ensure_streams(
    js: JetStreamContext,
    *,
    replicas: int = 1,
    command_bytes: int = 1024 * MIB,
    event_bytes: int = 1024 * MIB,
    dead_letter_bytes: int = 256 * MIB,
) -> None:
    """Make the three streams, or bring those there are to this configuration without touching their messages."""
    for wanted in (
        _commands(command_bytes, replicas),
        _copies(EVENT_STREAM, "evt", event_bytes, replicas),
        _copies(DEAD_LETTER_STREAM, "dlq", dead_letter_bytes, replicas),
    ):
        await _ensure(js, wanted)


def _commands(max_bytes: int, replicas: int) -> StreamConfig:
    """A full stream refuses the next command, so that its publisher knows: nothing is ever dropped to make room."""
    return StreamConfig(
        name=COMMAND_STREAM,
        subjects=[command_filter()],
        subject_transform=SubjectTransform(
            src=command_filter(),
            dest=f"{STORED_COMMANDS}.{{{{partition({PARTITIONS},3)}}}}."
            "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}",
        ),
        discard=DiscardPolicy.NEW,
        **_common(max_bytes, replicas),
    )


def _copies(name: str, branch: str, max_bytes: int, replicas: int) -> StreamConfig:
    """Drops the oldest when full: what lies here is a copy, and a flood of it must stop neither outbox nor inbox.

    Events can be had from the event store again; a dead letter was never a command, and is counted besides.
    """
    return StreamConfig(
        name=name, subjects=[f"{PREFIX}.{branch}.>"], discard=DiscardPolicy.OLD, **_common(max_bytes, replicas)
    )


def _common(max_bytes: int, replicas: int) -> dict[str, Any]:
    return {
        "retention": RetentionPolicy.LIMITS,
        "storage": StorageType.FILE,
        "max_age": 0.0,
        "max_msgs": -1,
        "max_bytes": max_bytes,
        "max_msg_size": MAX_MESSAGE,
        "duplicate_window": DEDUPLICATION,
        "num_replicas": replicas,
    }


_FIXED = ("subjects", "subject_transform", "storage", "retention")
_UPDATABLE = ("discard", "max_age", "max_msgs", "max_bytes", "max_msg_size", "duplicate_window", "num_replicas")


async def _ensure(js: JetStreamContext, wanted: StreamConfig) -> None:
    deadline = time.monotonic() + _AVAILABLE_WITHIN
    while True:
        try:
            return await _ensure_once(js, wanted)
        except (ServiceUnavailableError, nats.errors.TimeoutError, nats.errors.NoRespondersError) as e:
            if time.monotonic() >= deadline or (isinstance(e, APIError) and e.err_code not in (None, 10008)):
                raise _refused(wanted, e) from e
            await asyncio.sleep(0.2)
        except APIError as e:
            raise _refused(wanted, e) from e


async def _ensure_once(js: JetStreamContext, wanted: StreamConfig) -> None:
    name = str(wanted.name)
    try:
        found = (await js.stream_info(name)).config
    except NotFoundError:
        try:
            await js.add_stream(wanted)
        except BadRequestError as e:
            if e.err_code != _STREAM_EXISTS:
                raise
            found = (await js.stream_info(name)).config  # another worker was quicker
        else:
            log.info("stream_made", stream=name, max_bytes=wanted.max_bytes, replicas=wanted.num_replicas)
            return
    for field in _FIXED:
        if getattr(found, field) != getattr(wanted, field):
            raise BrokerError(
                "stream_mismatch",
                f"the stream {name} has {field} {getattr(found, field)!r} and needs {getattr(wanted, field)!r}, which "
                "cannot be changed under its messages; stop the publishers, let the engine decide what lies there, "
                f"delete the stream {name}, and start the engine again: it makes the stream anew",
            )
    # More replicas than asked for are the operator's doing, and never taken away.
    kept = max(found.num_replicas or 1, wanted.num_replicas or 1)
    wanted = wanted.evolve(num_replicas=kept)
    changed = {f: getattr(wanted, f) for f in _UPDATABLE if getattr(found, f) != getattr(wanted, f)}
    if changed:
        await js.update_stream(found.evolve(**changed))
        log.info("stream_updated", stream=name, **{k: str(v) for k, v in changed.items()})


def _refused(wanted: StreamConfig, error: nats.errors.Error) -> BrokerError:
    because = error.description if isinstance(error, APIError) else (str(error) or type(error).__name__)
    return BrokerError(
        "stream_refused",
        f"the broker does not take the stream {wanted.name} with {wanted.max_bytes} bytes and "
        f"{wanted.num_replicas} replicas ({because}); give the broker JetStream with room for it, or ask for less",
    )


async def require_durable(js: JetStreamContext, *, embedded: bool = False, declared: bool = False) -> None:
    """Raise `broker_not_durable` unless an acknowledged command survives the loss of power of one machine.

    `embedded`: the broker is started by us and syncs before it acknowledges. `declared`: the operator vouches for it.
    A client cannot ask a foreign broker when it syncs, hence the word of the operator.
    """
    info: StreamInfo = await js.stream_info(COMMAND_STREAM)
    config = info.config
    if config.storage != StorageType.FILE or config.persist_mode == PersistMode.ASYNC:
        raise BrokerError(
            "broker_not_durable",
            f"the stream {COMMAND_STREAM} acknowledges commands before they are in a file; make it a file stream "
            "with the default persist mode",
        )
    if embedded or declared or (config.num_replicas or 1) >= 3:  # noqa: PLR2004 - a majority outlives one loss
        return
    raise BrokerError(
        "broker_not_durable",
        f"the stream {COMMAND_STREAM} has {config.num_replicas or 1} replica(s) on a broker that may acknowledge "
        "before it syncs: a power cut could lose accepted commands; use three replicas, or set `sync_interval: always` "
        "on the broker and declare it durable",
    )
