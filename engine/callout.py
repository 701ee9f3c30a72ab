"""A broker that we do not run asks us about guests: NATS's auth callout, answered from what enrolment knows.

Guarantees that a guest is let in with the key that enrolled for its instance, which it proves, and gets the rights of
this instance alone. Whoever else the broker asks about is refused: all other users are the operator's and do not come
here. One that is revoked keeps the connection that it has until the end of its leave.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine import nkey
from engine.clock import Now, utc_now
from engine.clouds.port import TransientError
from engine.credentials import guest_of, guest_rights
from engine.enrolled import Guests

SUBJECT = "$SYS.REQ.USER.AUTH"
LEAVE = timedelta(hours=1)  # then the broker ends the connection, the agent comes again, and we are asked anew
GROUP = "callout"  # one of several workers answers

_REPLIES = timedelta(minutes=2)  # within which a guest may answer, once

log = structlog.get_logger(__name__)


class _Server(msgspec.Struct, frozen=True):
    id: str


class _Connection(msgspec.Struct, frozen=True):
    nonce: str = ""


class _Options(msgspec.Struct, frozen=True):
    nkey: str = ""
    sig: str = ""
    name: str = ""


class _Asked(msgspec.Struct, frozen=True):
    server_id: _Server
    user_nkey: str
    client_info: _Connection
    connect_opts: _Options


class _Claims(msgspec.Struct, frozen=True):
    nats: _Asked


class Callout:
    """Answers the broker. It is also the broker's side of enrolment, where nothing is to be done beforehand.

    `issuer`: the seed of the account key that the broker was told of; `account`: where guests belong to; `leave`: how
    long the broker takes our word for a connection.
    """

    def __init__(self, client: Client, issuer: str, account: str, now: Now = utc_now) -> None:
        self.leave = LEAVE
        self._client = client
        self._guests = Guests(client)
        self._issuer = issuer
        self._issuer_key = nkey.public_key(issuer)
        self._account = account
        self._now = now
        self._answering: set[asyncio.Task[None]] = set()

    async def admit(self, instance_id: UUID, public_key: str) -> None:
        """Nothing: the broker asks when the guest comes."""

    async def revoke(self, instance_id: UUID) -> None:
        """Nothing: what is not known any more is refused, when the broker asks next."""

    async def run(self) -> None:
        """Answer until cancelled."""
        subscription = await self._client.subscribe(SUBJECT, queue=GROUP, cb=self._take)
        try:
            await asyncio.Event().wait()
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _take(self, message: Msg) -> None:
        task = asyncio.create_task(self._answer(message))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, message: Msg) -> None:
        try:
            asked = msgspec.json.decode(nkey.claims_of(message.data), type=_Claims).nats
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("callout_unreadable", reason=str(error))
            return
        instance_id = guest_of(asked.connect_opts.name)
        try:
            known = instance_id is not None and await self._is_guest(instance_id, asked)
        except TransientError as error:
            log.warning("callout_not_answered", reason=str(error), next="the guest comes again")
            return
        if instance_id is not None and known:
            said = {"jwt": self._leave(instance_id, asked.user_nkey)}
        else:
            log.warning("guest_refused", name=asked.connect_opts.name[:64])
            said = {"error": "this key has not enrolled for this instance"}
        answer = self._claims(asked.user_nkey, asked.server_id.id, type="authorization_response", **said)
        await message.respond(nkey.signed_claims(self._issuer, answer).encode())

    async def _is_guest(self, instance_id: UUID, asked: _Asked) -> bool:
        """Whether the key has enrolled for the instance, and whoever comes has its seed."""
        options = asked.connect_opts
        guest = await self._guests.get(instance_id)
        if guest is None or guest.key != options.nkey or not asked.client_info.nonce:
            return False
        return nkey.has_signed(options.nkey, asked.client_info.nonce.encode(), _padded(options.sig))

    def _leave(self, instance_id: UUID, user: str) -> str:
        rights = guest_rights(instance_id)
        claims = self._claims(
            user,
            self._account,
            type="user",
            pub={"allow": list(rights.publish)},
            sub={"allow": list(rights.subscribe)},
            resp={"max": 1, "ttl": int(_REPLIES.total_seconds() * 1e9)},
            subs=-1,
            data=-1,
            payload=-1,
        )
        claims["exp"] = int((self._now() + self.leave).timestamp())
        return nkey.signed_claims(self._issuer, claims)

    def _claims(self, about: str, audience: str, **said: object) -> dict[str, object]:
        return {
            "jti": uuid4().hex,
            "iat": int(self._now().timestamp()),
            "iss": self._issuer_key,
            "sub": about,
            "aud": audience,
            "nats": {**said, "version": 2},
        }


def _padded(signature: str) -> str:
    """Clients send it with or without padding, in either alphabet of base64."""
    try:
        raw = base64.b64decode(
            signature + "=" * (-len(signature) % 4), altchars=b"-_" if {"-", "_"} & set(signature) else None
        )
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(raw).decode()
