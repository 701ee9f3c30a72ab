"""The agent's connection to the broker: it comes back whatever ends it, a refusal of the broker too.

It delivers nothing for certain: what is published while the broker is away is not sent, and callers ask again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine.broker import SecureClient
from engine.guest.config import AgentConfig
from engine.messages import guest_subject

_log = structlog.get_logger()
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What proves the agent to the broker and the broker to the agent; read while the process may still read it."""

    seed: str | None
    tls: ssl.SSLContext | None


def read_credentials(config: AgentConfig) -> Credentials:
    """Raises `OSError` if a file that the configuration names cannot be read."""
    return Credentials(
        seed=config.seed_file.read_text().strip() if config.seed_file else None,
        tls=ssl.create_default_context(cafile=config.tls_ca) if config.tls_ca else None,
    )


async def stay_connected(
    config: AgentConfig,
    credentials: Credentials,
    take: Callable[[Msg], Awaitable[None]],
    beat: Callable[[Client, asyncio.Event], Awaitable[None]],
) -> None:
    """Subscribe to the instance's verbs and run `beat` until the connection is closed for good; then all over again."""
    failures = 0
    while True:
        closed = asyncio.Event()
        try:
            client = await _connect(config, credentials, closed)
        except (OSError, nats.errors.Error, TimeoutError) as error:
            if failures == 0:
                _log.warning("broker_unreachable", url=config.nats_url, reason=_words(error))
            await _pause(failures)
            failures += 1
            continue
        _log.info("broker_connected", url=config.nats_url)
        began = asyncio.get_running_loop().time()
        try:
            await client.subscribe(guest_subject(config.instance_id, "*"), cb=take)
            await beat(client, closed)
        except (nats.errors.Error, TimeoutError) as error:
            _log.warning("broker_connection_failed", reason=_words(error))
        finally:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await client.close()
        failures = 0 if asyncio.get_running_loop().time() - began > _PAUSES[-1] else failures + 1
        await _pause(failures)


async def _connect(config: AgentConfig, credentials: Credentials, closed: asyncio.Event) -> Client:
    options: dict[str, Any] = {}
    if credentials.tls is not None:
        options["tls"] = credentials.tls
    if credentials.seed is not None:
        options["nkeys_seed_str"] = credentials.seed
    said: set[str] = set()

    async def on_error(error: Exception) -> None:
        if _words(error) not in said:  # an unreachable broker says the same with every attempt
            said.add(_words(error))
            _log.warning("broker_error", reason=_words(error))

    async def on_reconnect() -> None:
        said.clear()
        _log.info("broker_reconnected", url=config.nats_url)

    async def on_close() -> None:
        closed.set()

    client = SecureClient(has_certificate=False)
    await client.connect(
        config.nats_url,
        name=f"guest-{config.instance_id}",
        inbox_prefix=f"_INBOX.guest.{config.instance_id}",
        max_reconnect_attempts=-1,
        reconnect_time_wait=1,
        connect_timeout=3,
        ping_interval=10,
        max_outstanding_pings=2,
        error_cb=on_error,
        reconnected_cb=on_reconnect,
        closed_cb=on_close,
        **options,
    )
    return client


async def _pause(failures: int) -> None:
    await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])


def _words(error: Exception) -> str:
    return str(error) or repr(error)
