"""Enrolment: how a new machine comes by a key that speaks for its instance, with nothing but what its user data says.

Guarantees that a one-time token lets in one key, that of its first use; that the same key may ask again as often as
answers are lost; and that nothing which was sent or is stored here can be used by another. It does not keep whoever
reads a machine's user data from being quicker than the machine: then the machine is refused, and its create fails.

Any worker may answer, for what is known lies with the broker, in `engine/enrolled.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine import nkey
from engine.broker import BrokerError
from engine.clock import Now, monotonic, utc_now
from engine.clouds.port import FinalError, TransientError, check_permit
from engine.enrolled import Guest, Guests
from engine.guest.user_data import Machine, render
from engine.messages import EnrolReply, EnrolRequest, enrolment_claim, enrolment_subject
from engine.replies import Answerable

LIFETIME = timedelta(hours=2)  # of a token: a create has one by default, and its machine presents itself within it
GROUP = "enrolment"  # one of several workers answers

_KEPT = 8  # tokens of each kind for one instance: as many machines may have been asked for while answers were lost
_PER_SECOND, _BURST = 50.0, 200  # requests of all machines together
_AT_ONCE = 16

log = structlog.get_logger(__name__)


class EnrolmentRefused(Exception):  # noqa: N818 - an answer, not a defect
    """The machine is not let in. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How machines reach the broker: its URL as they see it, its CA in PEM, and the seed of its user `enrol`."""

    url: str
    ca: str | None = None
    seed: str | None = None


class Admission(Protocol):
    """The broker's side of it. Both calls may be repeated, and hold when they return."""

    async def admit(self, instance_id: UUID, public_key: str) -> None:
        """The broker takes this key, and no other, as the instance's."""
        ...

    async def revoke(self, instance_id: UUID) -> None:
        """The broker takes no key as the instance's."""
        ...


class MachineCredentials(Protocol):
    """What a cloud that starts machines asks. Every call may be repeated, and raises `TransientError` for a while."""

    async def ensure(self, instance_id: UUID) -> None:
        """The instance's machine may enrol."""
        ...

    async def user_data(self, instance_id: UUID, datastore: str, datastore_version: str) -> bytes:
        """What the instance's machine is to be given as user data, with a token of its own each time."""
        ...

    async def revoke(self, instance_id: UUID) -> None:
        """No machine speaks for the instance any more, nor may one enrol."""
        ...


class Enrolment:
    """Issues tokens, takes them, and has the broker admit and forget machines: a `MachineCredentials`.

    `refused` counts refusals by their code, since this worker began.
    """

    def __init__(
        self,
        client: Client,
        admission: Admission,
        access: Callable[[], Access],
        *,
        now: Now = utc_now,
        lifetime: timedelta = LIFETIME,
    ) -> None:
        self._client = client
        self._admission = admission
        self._access = access
        self._now = now
        self._lifetime = lifetime
        self._guests = Guests(client)
        self._may_answer = Answerable(client)
        self._rate = _Rate(_PER_SECOND, _BURST)
        self._answering: set[asyncio.Task[None]] = set()
        self.refused: Counter[str] = Counter()

    # --- for the cloud --------------------------------------------------------------------------------------------

    async def ensure(self, instance_id: UUID) -> None:
        """The instance's machine may enrol."""
        check_permit()
        await self._guests.open(instance_id)

    async def user_data(self, instance_id: UUID, datastore: str, datastore_version: str) -> bytes:
        """What the machine is told. Each call issues a token, since the last machine may never have been made.

        Raises `FinalError` when the instance's credentials were revoked.
        """
        check_permit()
        token = nkey.make_seed()
        public, expires = nkey.public_key(token), self._now() + self._lifetime

        def issue(guest: Guest) -> Guest:
            now = self._now()
            valid = {key: end for key, end in guest.open.items() if end > now}
            return msgspec.structs.replace(guest, open=_last(valid | {public: expires}))

        if await self._guests.change(instance_id, issue) is None:
            raise FinalError(
                "credentials_revoked", f"instance {instance_id} has no credentials any more: nothing may speak for it"
            )
        access = self._access()
        return render(
            Machine(
                instance_id=instance_id,
                datastore=datastore,
                datastore_version=datastore_version,
                nats_url=access.url,
                token=token,
                access=access.seed,
                ca=access.ca,
            )
        )

    async def revoke(self, instance_id: UUID) -> None:
        """No machine speaks for the instance any more, nor may one enrol."""
        check_permit()
        await self._guests.forget(instance_id)
        try:
            await self._admission.revoke(instance_id)
        except BrokerError as error:
            raise TransientError(error.code, error.message) from error

    # --- for machines ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer machines until cancelled."""
        subscription = await self._client.subscribe(enrolment_subject(), queue=GROUP, cb=self._take)
        try:
            await asyncio.Event().wait()
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def enrol(self, request: EnrolRequest) -> None:
        """The broker takes the request's key as the instance's. Raises `EnrolmentRefused`."""
        claim = enrolment_claim(request.instance_id, request.public_key)
        if not nkey.is_user(request.public_key) or not nkey.has_signed(request.token, claim, request.proof):
            raise _unknown_token()
        admitted = await self._guests.change(request.instance_id, lambda guest: self._bound(guest, request))
        if admitted is None:
            raise _unknown_token()
        await self._admission.admit(request.instance_id, request.public_key)
        now_known = await self._guests.get(request.instance_id)
        if now_known is None:  # revoked meanwhile, perhaps before we had it admitted
            await self._admission.revoke(request.instance_id)
            raise _unknown_token()

    def _bound(self, guest: Guest, request: EnrolRequest) -> Guest:
        """The guest with the request's key. Only the holder of a token comes so far, so the reason may be told."""
        if request.token in guest.spent:
            if guest.key == request.public_key:
                return guest  # the answer was lost
            raise EnrolmentRefused(
                "token_used",
                "this token has let in another key, or a newer machine has enrolled; if that was not this machine, its "
                "user data was read by somebody else: delete the instance",
            )
        expires = guest.open.get(request.token)
        if expires is None:
            raise _unknown_token()
        if expires <= self._now():
            raise EnrolmentRefused(
                "token_expired",
                f"this token was valid until {expires:%Y-%m-%d %H:%M:%S} UTC; delete the instance and create it anew",
            )
        spent = (*guest.spent, *(token for token in guest.open if token != request.token), request.token)
        return Guest(key=request.public_key, spent=spent[-2 * _KEPT :])

    async def _take(self, message: Msg) -> None:
        if len(self._answering) >= _AT_ONCE or not self._rate.allows():
            busy = EnrolmentRefused("rate_limited", "too many machines ask at once; ask again later")
            await self._reply(message, self._refusal(busy))
            return
        task = asyncio.create_task(self._answer(message))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, message: Msg) -> None:
        try:
            request = msgspec.json.decode(message.data, type=EnrolRequest)
        except msgspec.MsgspecError as error:
            await self._reply(message, self._refusal(EnrolmentRefused("malformed_request", str(error))))
            return
        said = {"instance_id": str(request.instance_id)}
        try:
            await self.enrol(request)
        except EnrolmentRefused as refused:
            reply = self._refusal(refused, **said)
        except (TransientError, BrokerError) as error:
            reply = self._refusal(EnrolmentRefused(error.code, f"{error.message}; ask again"), **said)
        except Exception:
            log.exception("enrolment_broke", **said)
            reply = self._refusal(EnrolmentRefused("internal_error", "the worker's log says why; ask again"), **said)
        else:
            log.info("guest_enrolled", **said, key=request.public_key)
            reply = EnrolReply(accepted=True)
        await self._reply(message, reply)

    def _refusal(self, refused: EnrolmentRefused, **said: str) -> EnrolReply:
        self.refused[refused.code] += 1
        log.warning("enrolment_refused", code=refused.code, times=self.refused[refused.code], **said)
        return EnrolReply(accepted=False, code=refused.code, message=refused.message)

    async def _reply(self, message: Msg, reply: EnrolReply) -> None:
        if not self._may_answer(message.reply):
            return
        try:
            await message.respond(msgspec.json.encode(reply))
        except nats.errors.Error as error:
            log.warning("enrolment_reply_lost", reason=str(error))


class _Rate:
    """So many at once, and so many per second on average."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._left = float(burst)
        self._at: float | None = None

    def allows(self) -> bool:
        """Whether one more may come now; counted if so."""
        now = monotonic()
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _unknown_token() -> EnrolmentRefused:
    """One answer for whoever holds no token of this instance: it does not tell which instances there are."""
    return EnrolmentRefused(
        "token_refused",
        "no token of this instance was presented; the machine's user data is another's, or the instance was deleted",
    )


def _last(tokens: dict[str, datetime]) -> dict[str, datetime]:
    return dict(list(tokens.items())[-_KEPT:])
