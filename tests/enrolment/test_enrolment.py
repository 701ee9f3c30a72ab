"""A machine with its user data comes by a key that speaks for its instance alone; nobody else comes by anything."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine import nkey
from engine.broker import BrokerError
from engine.clouds.port import FinalError
from engine.credentials import GuestCredentials
from engine.enrolled import Guests
from engine.enrolment import LIFETIME
from engine.messages import EnrolRequest, enrolment_claim, enrolment_subject, guest_subject, heartbeat_subject
from engine.state import StateDirectory
from tests.enrolment.conftest import Site, request
from tests.support.eventually import eventually

ONE, OTHER = uuid.UUID(int=21), uuid.UUID(int=22)


async def _refused(client: Client) -> bool:
    await client.flush(timeout=10)
    return "permissions violation" in str(client.last_error).lower()


async def test_the_key_that_enrolled_is_the_guest(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    assert (await site.ask(request(machine, seed))).accepted
    guest = await site.guest(ONE, seed)
    beats = await site.worker.subscribe(heartbeat_subject("*"))
    await site.worker.flush()

    async def answer(message: Msg) -> None:
        await message.respond(b"here")

    await guest.subscribe(guest_subject(ONE, "*"), cb=answer)
    await guest.publish(heartbeat_subject(ONE), b"{}")
    await guest.flush()
    assert (await beats.next_msg(10)).subject == heartbeat_subject(ONE)
    assert (await site.worker.request(guest_subject(ONE, "report"), b"", timeout=10)).data == b"here"


@pytest.mark.parametrize("subject", [heartbeat_subject(OTHER), enrolment_subject(), "$JS.API.INFO"])
async def test_a_guest_speaks_for_its_own_instance_alone(site: Site, subject: str) -> None:
    seed = nkey.make_seed()
    await site.ask(request(await site.machine(ONE), seed))
    guest = await site.guest(ONE, seed)
    await guest.publish(subject, b"{}")
    assert await _refused(guest)


@pytest.mark.parametrize("subject", [enrolment_subject(), guest_subject("*", "*"), heartbeat_subject("*"), "_INBOX.>"])
async def test_who_may_ask_for_enrolment_hears_nothing_of_others(site: Site, subject: str) -> None:
    machine = await site.machine(ONE)
    assert machine.access is not None
    stranger = await site._client("enrol", site.broker.users.seed("enrol"), "_INBOX.enrol")
    await stranger.subscribe(subject)
    assert await _refused(stranger)


async def test_the_same_key_may_ask_again(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    replies = [await site.ask(request(machine, seed)) for _ in range(3)]
    assert [reply.accepted for reply in replies] == [True, True, True]


async def test_a_used_token_gets_nothing_for_another_key(site: Site) -> None:
    machine, seed, thief = await site.machine(ONE), nkey.make_seed(), nkey.make_seed()
    await site.ask(request(machine, seed))
    reply = await site.ask(request(machine, thief))
    assert (reply.accepted, reply.code) == (False, "token_used")
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await site.guest(ONE, thief, timeout=2)
    assert (await site.guest(ONE, seed)).is_connected
    assert site.enrolment.refused == {"token_used": 1}


async def test_of_many_at_once_with_one_token_one_is_let_in(site: Site) -> None:
    machine, seeds = await site.machine(ONE), [nkey.make_seed() for _ in range(6)]
    workers = [site.enrolment, site.new_enrolment()]
    asked = (workers[n % 2].enrol(request(machine, seed)) for n, seed in enumerate(seeds))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is None] == [None]
    guest = await Guests(site.worker).get(ONE)
    assert guest is not None
    assert guest.key == nkey.public_key(seeds[outcomes.index(None)])


async def test_what_is_overheard_serves_nobody_else(site: Site) -> None:
    machine, seed, thief = await site.machine(ONE), nkey.make_seed(), nkey.make_seed()
    heard = request(machine, seed)
    forged = msgspec.structs.replace(heard, public_key=nkey.public_key(thief))
    assert (await site.ask(forged)).code == "token_refused"
    assert (await site.ask(heard)).accepted


async def test_a_token_of_another_instance_is_refused(site: Site) -> None:
    machine = await site.machine(ONE)
    await site.machine(OTHER)
    seed = nkey.make_seed()
    mine = msgspec.structs.replace(machine, instance_id=OTHER)
    assert (await site.ask(request(mine, seed))).code == "token_refused"


async def test_an_unknown_instance_and_an_unknown_token_are_refused_alike(site: Site) -> None:
    machine = await site.machine(ONE)
    unknown = msgspec.structs.replace(machine, instance_id=uuid.UUID(int=99))
    invented = msgspec.structs.replace(machine, token=nkey.make_seed())
    replies = [await site.ask(request(each, nkey.make_seed())) for each in (unknown, invented)]
    assert replies[0] == replies[1]
    assert replies[0].code == "token_refused"


async def test_a_token_expires(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    site.clock.advance(LIFETIME)
    assert (await site.ask(request(machine, seed))).code == "token_expired"


async def test_an_enrolled_machine_outlives_its_token(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    await site.ask(request(machine, seed))
    site.clock.advance(LIFETIME * 10)
    assert (await site.ask(request(machine, seed))).accepted
    assert (await site.guest(ONE, seed)).is_connected


async def test_user_data_rendered_again_locks_nobody_out(site: Site) -> None:
    first, second = await site.machine(ONE), await site.machine(ONE)
    assert first.token != second.token
    seed = nkey.make_seed()
    assert (await site.ask(request(first, seed))).accepted
    assert (await site.ask(request(second, nkey.make_seed()))).code == "token_used"


async def test_a_machine_made_anew_takes_the_place_of_the_old_one(site: Site) -> None:
    old, new = nkey.make_seed(), nkey.make_seed()
    await site.ask(request(await site.machine(ONE), old))
    await site.guest(ONE, old)
    assert (await site.ask(request(await site.machine(ONE), new))).accepted
    assert (await site.guest(ONE, new)).is_connected
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await site.guest(ONE, old, timeout=2)


async def test_a_token_outlives_the_worker_that_issued_it(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    await site.new_enrolment().enrol(request(machine, seed))
    assert (await site.guest(ONE, seed)).is_connected


async def test_a_guest_outlives_the_broker(site: Site) -> None:
    seed = nkey.make_seed()
    await site.ask(request(await site.machine(ONE), seed))
    await site.broker.stop()
    await site.broker.start()
    assert (await site.guest(ONE, seed)).is_connected


async def test_revoked_is_refused_whatever_it_holds(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    unused = await site.machine(ONE)
    await site.ask(request(unused, seed))
    guest = await site.guest(ONE, seed)
    await site.enrolment.revoke(ONE)
    await site.enrolment.revoke(ONE)
    with pytest.raises((nats.errors.Error, OSError)):
        await guest.request("anything", timeout=1)
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await site.guest(ONE, seed, timeout=2)
    for told in (machine, unused):
        assert (await site.ask(request(told, nkey.make_seed()))).code == "token_refused"
    with pytest.raises(FinalError, match="credentials_revoked"):
        await site.enrolment.user_data(ONE, "postgresql", "16")
    assert not list(StateDirectory(site.broker.config.parent.parent).credentials.glob("guest-*"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"instance_id": "../../etc", "public_key": "U", "token": "U", "proof": ""}',
    ],
)
async def test_malformed_is_refused_and_counted(site: Site, body: bytes) -> None:
    reply = await site.ask(body)
    assert (reply.accepted, reply.code) == (False, "malformed_request")
    assert site.enrolment.refused["malformed_request"] == 1


@pytest.mark.parametrize("public", ["U" + "A" * 55, "UNOTAKEY"])
async def test_a_key_that_is_none_is_never_told_to_the_broker(site: Site, public: str) -> None:
    machine = await site.machine(ONE)
    claim = enrolment_claim(ONE, public)
    asked = EnrolRequest(
        instance_id=ONE,
        public_key=public,
        token=nkey.public_key(machine.token),
        proof=nkey.sign(machine.token, claim),
    )
    assert (await site.ask(asked)).code in {"token_refused", "malformed_request"}
    assert public not in (site.broker.config.parent / "accounts.conf").read_text()


async def test_a_flood_is_refused_and_ends(site: Site) -> None:
    flood = await site._client("enrol", site.broker.users.seed("enrol"), "_INBOX.enrol")
    for _ in range(1000):
        await flood.publish(enrolment_subject(), b"{}", reply="_INBOX.enrol.flood")
    await flood.flush()
    machine, seed = await site.machine(ONE), nkey.make_seed()

    async def let_in() -> bool:
        return (await site.ask(request(machine, seed))).accepted

    await eventually(let_in)
    assert site.enrolment.refused["rate_limited"] > 0


async def test_no_token_is_kept(site: Site) -> None:
    machine, seed = await site.machine(ONE), nkey.make_seed()
    await site.ask(request(machine, seed))
    state = site.broker.config.parent.parent
    await site.broker.stop()
    for secret in (machine.token, seed):
        holding = [file for file in state.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]
        assert holding == []


async def test_a_broker_that_lost_its_reload_admits_at_the_next_try(site: Site) -> None:
    """A death between what is written and the reload: the machine asks again."""
    machine, seed = await site.machine(ONE), nkey.make_seed()
    asked = request(machine, seed)
    await site.enrolment._guests.change(ONE, lambda guest: site.enrolment._bound(guest, asked))
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await site.guest(ONE, seed, timeout=2)
    site.enrolment._admission = GuestCredentials(site.broker)
    assert (await site.ask(asked)).accepted
    assert (await site.guest(ONE, seed)).is_connected
