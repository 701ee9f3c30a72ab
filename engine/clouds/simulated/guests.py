"""Guest agents in memory that behave as real ones, asked by the engine's own caller as over a broker.

A journal answers a repeated key for ever, a verb outlives whoever asked for it, and one whose agent died in the middle
is carried out again. As on a real server, journal and settings go with the server, the data directory with the volume.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from enum import StrEnum
from typing import Any

import msgspec
from nats.errors import NoRespondersError

from aggregates.effects import GuestEffect
from engine.clock import monotonic
from engine.clouds.port import Facts, PayError
from engine.clouds.simulated.failures import Failures
from engine.guests import Guests, Requests, Secrets
from engine.messages import GuestReply, GuestRequest, GuestState, GuestStatus, GuestVerb, RebuildArgs, StartArgs

PORT = 5432
RESTART_TIME = 1.0  # seconds until an agent that died is back


class GuestFaultKind(StrEnum):
    """What becomes of a request to an agent."""

    REQUEST_LOST = "request_lost"  # nothing is carried out, nothing answered
    ANSWER_LOST = "answer_lost"  # carried out and journalled, nothing answered
    DIES_BEFORE = "dies_before"  # the agent dies when it has begun, before it acts
    DIES_AFTER = "dies_after"  # the agent dies when it has acted, before it writes that down
    DIES_ANSWERING = "dies_answering"  # the agent dies when it has written it down, before it answers
    REPLACED_BEFORE = "replaced_before"  # an agent with an empty journal takes its place, before it acts
    REPLACED_AFTER = "replaced_after"  # an agent with an empty journal takes its place, when it has acted
    SLOW = "slow"  # acting takes `seconds`
    SILENT = "silent"  # no request is answered for `seconds`
    FAILS = "fails"  # answered `failed`, in a way that may pass


class GuestFault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of one request."""

    kind: GuestFaultKind
    seconds: float = 0.0


GUEST_FAULTS: Mapping[str, GuestFault] = {
    kind.value: GuestFault(kind=kind, seconds={GuestFaultKind.SLOW: 45.0, GuestFaultKind.SILENT: 30.0}.get(kind, 0.0))
    for kind in GuestFaultKind
}

GuestDraw = Callable[[str, GuestVerb], GuestFault | None]
_NOT_ACTING = frozenset({GuestFaultKind.REQUEST_LOST, GuestFaultKind.SILENT, GuestFaultKind.FAILS})


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent carried out: the verb (`install`: a fresh data directory), under which key, when (loop's time)."""

    instance_id: str
    verb: str
    key: str
    at: float


class Answer(msgspec.Struct, frozen=True):
    """A message that answers a request."""

    data: bytes


class _Guest:
    """One instance's agent and its database."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.boot = 0
        self.up_at = 0.0
        self.verbs: dict[str, str] = {}
        self.answers: dict[str, GuestReply] = {}
        self.running: dict[str, asyncio.Task[GuestReply]] = {}
        self.prepared = False
        self.on = False
        self.installed = False

    @property
    def status(self) -> GuestStatus:
        if not self.prepared:
            return GuestStatus.NEW
        return GuestStatus.HEALTHY if self.on else GuestStatus.SHUTDOWN


class GuestFaults:
    """The faults to come, by verb. `draw` is asked about each request for which none is planned."""

    def __init__(self, draw: GuestDraw | None = None) -> None:
        self.draw = draw
        self.injected: Counter[tuple[str, GuestFaultKind]] = Counter()
        self._planned: defaultdict[str, deque[GuestFault]] = defaultdict(deque)

    def plan(self, verb: str, fault: GuestFault, times: int = 1) -> None:
        """The next so many requests of this verb meet the fault."""
        self._planned[verb].extend([fault] * times)

    def due(self, instance_id: str, verb: GuestVerb) -> GuestFault | None:
        """The fault that this request meets."""
        planned = self._planned.get(verb)
        fault = planned.popleft() if planned else None if self.draw is None else self.draw(instance_id, verb)
        if fault is not None:
            self.injected[verb.value, fault.kind] += 1
        return fault


class SimulatedAgents:
    """The agents of all instances, asked as over the broker. `serves`: whether the server of this name is up.

    `verb_time`: seconds that a verb takes. Without `serves` every instance has an agent. `on_deed` hears of each deed.
    """

    def __init__(
        self,
        *,
        serves: Callable[[str], bool] | None = None,
        latency: float = 0.0,
        verb_time: float = 0.0,
        restart_time: float = RESTART_TIME,
        faults: GuestFaults | None = None,
        on_deed: Callable[[Deed], None] | None = None,
    ) -> None:
        self.faults = faults or GuestFaults()
        self.ledger: list[Deed] = []
        self.latency = latency
        self.verb_time = verb_time
        self._restart_time = restart_time
        self._serves = serves
        self._on_deed = on_deed
        self._guests: dict[str, _Guest] = {}
        self._context = copy_context()  # what goes on here is no part of who asked

    async def request(self, subject: str, payload: bytes, timeout: float) -> Answer:
        """As the broker's client has it: `NoRespondersError` without an agent, `TimeoutError` without an answer."""
        if self.latency:
            await asyncio.sleep(self.latency)
        instance_id, verb = subject.split(".")[-2:]
        guest = self._guest(instance_id)
        asked = _Asked(instance_id, GuestVerb(verb), msgspec.json.decode(payload, type=GuestRequest))
        fault = self.faults.due(instance_id, asked.verb)
        async with asyncio.timeout(timeout):
            return Answer(msgspec.json.encode(await self._reply(guest, asked, fault)))

    def forget(self, name: str) -> None:
        """The server of this name is gone, and its volume: nothing is left of its agent."""
        self._guests.pop(name.removeprefix("holdfast-"), None)

    def renew(self, name: str) -> None:
        """The server of this name is made anew: an agent that knows nothing comes up on it, beside the old data."""
        guest = self._guests.get(name.removeprefix("holdfast-"))
        if guest is not None:
            self._kill(guest, empty=True)

    def _guest(self, instance_id: str) -> _Guest:
        if self._serves is not None and not self._serves(f"holdfast-{instance_id}"):
            raise NoRespondersError
        guest = self._guests.setdefault(instance_id, _Guest())
        if guest.up_at > monotonic():
            raise NoRespondersError
        return guest

    async def _reply(self, guest: _Guest, asked: _Asked, fault: GuestFault | None) -> GuestReply:
        if fault is not None and fault.kind in _NOT_ACTING:
            if fault.kind is GuestFaultKind.FAILS:
                return GuestReply(state=GuestState.FAILED, error="so it was planned", transient=True)
            if fault.kind is GuestFaultKind.SILENT:
                guest.up_at = monotonic() + fault.seconds
            await _nothing()
        if asked.verb is GuestVerb.REPORT:
            if fault is not None and fault.kind is not GuestFaultKind.SLOW:
                await self._die(guest, empty=fault.kind.value.startswith("replaced"))
            return GuestReply(state=GuestState.DONE, facts={"status": guest.status.value, "boot": str(guest.boot)})
        reply = await self._verb(guest, asked, fault)
        if fault is not None and fault.kind in (GuestFaultKind.ANSWER_LOST, GuestFaultKind.DIES_ANSWERING):
            if fault.kind is GuestFaultKind.DIES_ANSWERING:
                self._kill(guest, empty=False)
            await _nothing()
        return reply

    async def _verb(self, guest: _Guest, asked: _Asked, fault: GuestFault | None) -> GuestReply:
        key = asked.request.key
        if guest.verbs.get(key, asked.verb) != asked.verb:
            return GuestReply(state=GuestState.FAILED, error=f"key_reused: this key was used for {guest.verbs[key]}")
        if key in guest.answers:
            return guest.answers[key]
        running = guest.running.get(key)
        if running is None:
            if fault is None and not self.verb_time and not guest.turn.locked():
                return self._act_and_record(guest, asked)
            running = asyncio.create_task(
                self._carry_out(guest, asked, fault), name=f"guest-{asked.verb}", context=self._context.copy()
            )
            guest.running[key] = running
            running.add_done_callback(lambda _: guest.running.pop(key, None))
        await asyncio.wait({running}, timeout=asked.request.wait * 0.9)
        if not running.done():
            return GuestReply(state=GuestState.RUNNING, progress=asked.verb.value)
        if running.cancelled():
            await _nothing()  # the agent has died
        return running.result()

    async def _carry_out(self, guest: _Guest, asked: _Asked, fault: GuestFault | None) -> GuestReply:
        kind = None if fault is None else fault.kind
        async with guest.turn:
            guest.verbs[asked.request.key] = asked.verb
            await asyncio.sleep(self.verb_time if fault is None else fault.seconds or self.verb_time)
            if kind in (GuestFaultKind.DIES_BEFORE, GuestFaultKind.REPLACED_BEFORE):
                await self._die(guest, empty=kind is GuestFaultKind.REPLACED_BEFORE)
            if kind is GuestFaultKind.DIES_AFTER:
                self._act(guest, asked)
                await self._die(guest, empty=False)
            reply = self._act_and_record(guest, asked)
            if kind is GuestFaultKind.REPLACED_AFTER:
                await self._die(guest, empty=True)
            return reply

    def _act_and_record(self, guest: _Guest, asked: _Asked) -> GuestReply:
        key = asked.request.key
        guest.verbs[key] = asked.verb
        reply = self._act(guest, asked)
        guest.answers[key] = reply
        return reply

    def _act(self, guest: _Guest, asked: _Asked) -> GuestReply:
        verb = asked.verb
        if verb in (GuestVerb.START, GuestVerb.RESTART) and not guest.prepared:
            return GuestReply(state=GuestState.FAILED, error="not_prepared: there is no database here yet")
        if verb is GuestVerb.REBUILD:
            msgspec.convert(asked.request.args, RebuildArgs)
            if not guest.installed:
                return GuestReply(state=GuestState.FAILED, error="data_missing: there are no data on the volume")
        if verb is GuestVerb.PREPARE and not guest.installed:
            guest.installed = True
            self._note(asked, "install")
        if verb is GuestVerb.START:
            msgspec.convert(asked.request.args, StartArgs)
        if verb is not GuestVerb.GROW:
            guest.on = verb is not GuestVerb.STOP
        guest.prepared = guest.prepared or verb in (GuestVerb.PREPARE, GuestVerb.REBUILD)
        self._note(asked, verb.value)
        return GuestReply(state=GuestState.DONE, facts={"port": PORT} if verb is GuestVerb.PREPARE else {})

    def _note(self, asked: _Asked, verb: str) -> None:
        deed = Deed(instance_id=asked.instance_id, verb=verb, key=asked.request.key, at=monotonic())
        self.ledger.append(deed)
        if self._on_deed is not None:
            self._on_deed(deed)

    def _kill(self, guest: _Guest, *, empty: bool) -> None:
        """The agent dies, with what it was doing; another one is up a while later."""
        guest.boot += 1
        guest.up_at = monotonic() + self._restart_time
        guest.turn = asyncio.Lock()
        for task in guest.running.values():
            task.cancel()
        if empty:
            guest.verbs, guest.answers, guest.prepared, guest.on = {}, {}, False, False

    async def _die(self, guest: _Guest, *, empty: bool) -> None:
        self._kill(guest, empty=empty)
        await _nothing()


class _Asked:
    """One request."""

    def __init__(self, instance_id: str, verb: GuestVerb, request: GuestRequest) -> None:
        self.instance_id = instance_id
        self.verb = verb
        self.request = request


class _NoSecrets:
    """What stands for a secret is its reference."""

    def get(self, reference: str, *, project: str) -> str:  # noqa: ARG002 - the port's signature
        return reference


class SimulatedGuests:
    """Pays guest effects by asking simulated agents as real ones are asked. Without `secrets` references stand in."""

    def __init__(self, *, latency: float = 0.0, agents: Requests | None = None, secrets: Secrets | None = None) -> None:
        self.agents = agents or SimulatedAgents(latency=latency)
        self._failures = Failures()
        self._guests = Guests(self.agents, secrets or _NoSecrets())

    def fail(self, effect_name: str, error: PayError, times: int = 1) -> None:
        """The next so many payments of the effect raise the error and ask nobody."""
        self._failures.plan(effect_name, error, times)

    async def pay(self, effect: GuestEffect, key: str) -> Facts:
        """Bring it about through the agent."""
        self._failures.raise_next(effect.type_name)
        facts: Mapping[str, Any] = await self._guests.pay(effect, key)
        return facts


async def _nothing() -> None:
    """No answer comes."""
    await asyncio.get_running_loop().create_future()
