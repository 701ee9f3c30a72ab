"""Paying what guests owe: requests to guest agents over core NATS, with the secrets filled in on the way.

A request is repeated under the same key until the agent says done or failed, so a lost answer, a slow database or an
agent started anew changes nothing. What is sent is stored nowhere. An agent that does not answer is a transient error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import nats.errors

from aggregates.effects import (
    AwaitAgent,
    AwaitHealthy,
    GrowFileSystem,
    GuestEffect,
    PrepareDatabase,
    RebuildDatabase,
    RestartDatabase,
    StartDatabase,
    StopDatabase,
)
from engine import crash_points
from engine.clock import monotonic
from engine.clouds.port import FinalError, TransientError, check_permit
from engine.messages import (
    GrowArgs,
    GuestReply,
    GuestRequest,
    GuestState,
    GuestUser,
    GuestVerb,
    PrepareArgs,
    RebuildArgs,
    StartArgs,
    StopArgs,
    guest_subject,
)

ANSWER = 5.0  # seconds that the agent may hold an answer back
SLACK = 3.0  # seconds more before the request counts as lost
SILENCE = 60.0  # seconds without any answer after which the try counts as failed
POLL = 0.15
ASKED_PER_SECOND = 500.0  # of many agents that are waited for, each is asked the less often


class Secrets(Protocol):
    """Where references become secrets."""

    def get(self, reference: str, *, project: str) -> str:
        """The secret. Raises `KeyError` or a subclass when there is none."""
        ...


class Answer(Protocol):
    """A message that answers."""

    @property
    def data(self) -> bytes:
        """Its body."""
        ...


class Requests(Protocol):
    """The part of the broker's client that is needed here."""

    async def request(self, subject: str, payload: bytes, timeout: float) -> Answer:
        """The answer to a request. Raises an error of the client's when none comes in time."""
        ...


class Guests:
    """Speaks to the agents of all instances."""

    def __init__(self, client: Requests, secrets: Secrets) -> None:
        self._client = client
        self._secrets = secrets
        self._waited_for = 0

    async def pay(self, effect: GuestEffect, key: str) -> Mapping[str, Any]:
        """Bring it about through the agent. Raises `TransientError` or `FinalError`."""
        self._waited_for += 1
        try:
            return await self._pay(effect, key)
        finally:
            self._waited_for -= 1

    async def _pay(self, effect: GuestEffect, key: str) -> Mapping[str, Any]:
        match effect:
            case PrepareDatabase():
                return await self._call(effect, GuestVerb.PREPARE, key, await self._prepare_args(effect))
            case RebuildDatabase():
                args = RebuildArgs(
                    ram=effect.ram, volume_size=effect.volume_size, port=effect.port, overrides=effect.overrides
                )
                return await self._call(effect, GuestVerb.REBUILD, key, args)
            case StartDatabase():
                return await self._call(
                    effect, GuestVerb.START, key, StartArgs(ram=effect.ram, overrides=effect.overrides)
                )
            case StopDatabase():
                await self._call(effect, GuestVerb.STOP, key, StopArgs(release_volume=effect.release_volume))
            case RestartDatabase():
                return await self._call(effect, GuestVerb.RESTART, key)
            case GrowFileSystem():
                return await self._call(effect, GuestVerb.GROW, key, GrowArgs(volume_size=effect.volume_size))
            case AwaitAgent():
                await self._await_report(effect, key, healthy=False)
            case AwaitHealthy():
                await self._await_report(effect, key, healthy=True)
            case _:
                raise FinalError("unsupported", f"guests do not know {effect.type_name}")
        return {}

    async def _prepare_args(self, effect: PrepareDatabase) -> PrepareArgs:
        if not effect.users and effect.root_password_ref is None:
            return self._with_secrets(effect)
        return await asyncio.to_thread(self._with_secrets, effect)

    def _with_secrets(self, effect: PrepareDatabase) -> PrepareArgs:
        def secret(reference: str) -> str:
            try:
                return self._secrets.get(reference, project=effect.project)
            except KeyError as missing:
                raise FinalError(
                    "secret_not_found", f"no secret {reference}: put it again, then create anew"
                ) from missing

        return PrepareArgs(
            ram=effect.ram,
            volume_size=effect.volume_size,
            databases=[msgspec.to_builtins(d) for d in effect.databases],
            users=[
                GuestUser(name=u.name, password=secret(u.password_ref), host=u.host, databases=list(u.databases))
                for u in effect.users
            ],
            root_password=None if effect.root_password_ref is None else secret(effect.root_password_ref),
            overrides=effect.overrides,
        )

    async def _call(
        self, effect: GuestEffect, verb: GuestVerb, key: str, args: msgspec.Struct | None = None
    ) -> Mapping[str, Any]:
        begun = heard = monotonic()
        request = GuestRequest(key=key, args={} if args is None else msgspec.to_builtins(args), wait=ANSWER)
        while True:
            reply = await self._ask(effect, verb, request)
            moment = monotonic()
            if reply is None:
                if moment - heard > min(SILENCE, effect.patience):
                    silence = f"no answer from the guest agent for {moment - heard:.0f} s"
                    raise TransientError("guest_unreachable", silence)
                await asyncio.sleep(self._pause())
                continue
            heard = moment
            if reply.state is GuestState.DONE:
                return reply.facts
            if reply.state is GuestState.FAILED:
                error = TransientError if reply.transient else FinalError
                raise error("guest_error", reply.error or f"{verb} failed")
            if moment - begun > effect.patience:
                raise TransientError("guest_timeout", f"{verb} was not finished within {effect.patience:.0f} s")
            await asyncio.sleep(max(0.0, self._pause() - ANSWER))

    def _pause(self) -> float:
        return max(POLL, self._waited_for / ASKED_PER_SECOND)

    async def _ask(self, effect: GuestEffect, verb: GuestVerb, request: GuestRequest) -> GuestReply | None:
        """One request; None when no answer came."""
        check_permit()
        crash_points.reach("call", verb)
        try:
            message = await self._client.request(
                guest_subject(effect.instance_id, verb), msgspec.json.encode(request), timeout=request.wait + SLACK
            )
            crash_points.reach("answer", verb)
            return msgspec.json.decode(message.data, type=GuestReply)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError, TimeoutError, nats.errors.Error, OSError):
            return None
        except msgspec.DecodeError as error:
            raise FinalError("guest_error", f"the guest agent's answer cannot be read: {error}") from error

    async def _await_report(self, effect: GuestEffect, key: str, *, healthy: bool) -> None:
        deadline = monotonic() + SILENCE
        status = "no answer"
        while monotonic() < deadline:
            reply = await self._ask(effect, GuestVerb.REPORT, GuestRequest(key=key, wait=1.0))
            if reply is not None:
                status = str(reply.facts.get("status", "unknown"))
                if not healthy or status == "HEALTHY":
                    return
                if status == "FAILED":
                    raise FinalError("guest_error", f"the guest reports {status}: {reply.error or 'see its log'}")
            await asyncio.sleep(self._pause())
        what = "did not become healthy" if healthy else "did not answer"
        raise TransientError("guest_timeout", f"the guest {what} within {SILENCE:.0f} s; last report: {status}")
