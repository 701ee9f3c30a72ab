"""How every process connects to the broker, and what it needs to be let in.

Guarantees that a connection comes back by itself for as long as its credentials are accepted, and that an error says
which file, certificate or address to mend. It cannot tell a broker that is slow from one that is gone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import nats.errors
import nkeys  # type: ignore[import-untyped]
import structlog
from nats.aio.client import Client, Server

_PING = 10  # seconds
_CLOSED_WITHIN = 5.0
_SLOWEST_RETRY = 5.0

log = structlog.get_logger(__name__)


class BrokerError(Exception):
    """The broker cannot be used as it is. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


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
    client = SecureClient(has_certificate=settings.tls_cert is not None)
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


class SecureClient(Client):
    """The library's client without its gaps: it never goes on in clear where TLS was asked for, and always closes."""

    def __init__(self, *, has_certificate: bool) -> None:
        super().__init__()
        self._has_certificate = has_certificate

    async def close(self) -> None:
        """The library's own raises when the transport was lost a moment ago, and sends what is pending without end."""
        with contextlib.suppress(OSError):  # a timeout is one
            async with asyncio.timeout(_CLOSED_WITHIN):
                await super().close()

    async def flush(self, timeout: int = 10) -> None:
        """The library's own sends its question ahead of what is pending, so that its answer says nothing of that."""
        try:
            async with asyncio.timeout(timeout):
                await self._flush_pending(force_flush=True)
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
