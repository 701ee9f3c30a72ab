"""The agent's enrolment: the machine makes a key, and asks with its one-time token that the key be its instance's.

The seed of the key never leaves the machine. It is on disk before it is asked for, so whatever is lost, the same key
asks again; once accepted it is not asked for any more.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import nats.errors
import structlog

from engine import nkey
from engine.broker import BrokerError, BrokerSettings, connect
from engine.guest.config import AgentConfig
from engine.guest.desired import write_durably
from engine.guest.user_data import Machine
from engine.messages import EnrolReply, EnrolRequest, enrolment_claim, enrolment_subject

_log = structlog.get_logger()
_USER = "enrol"
_CONNECT = 10.0  # seconds
_ANSWER = 30.0  # the broker's reload of its users is in it
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)


class _Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """As which instance's, and which key was accepted."""

    instance_id: str
    key: str


def prepare(machine: Machine, config: AgentConfig) -> None:
    """Write what the connection needs: the agent's key, made once, and the broker's CA."""
    if config.seed_file is None:
        raise ValueError("a machine that enrols needs a file for its seed")
    if config.tls_ca is not None:
        write_durably(config.tls_ca, (machine.ca or "").encode())
    if not config.seed_file.exists():
        write_durably(config.seed_file, nkey.make_seed().encode())


async def enrol(machine: Machine, config: AgentConfig) -> None:
    """Return once the broker takes the agent's key; try for ever, since whatever refuses it may be mended."""
    seed = (config.seed_file or Path(os.devnull)).read_text().strip()
    done = _Enrolled(instance_id=str(machine.instance_id), key=nkey.public_key(seed))
    marker = config.directory / "enrolled.json"
    if marker.exists() and msgspec.json.decode(marker.read_bytes(), type=_Enrolled) == done:
        return
    failures, said = 0, ""
    while (refusal := await _ask(machine, config, done.key)) is not None:
        if refusal != said:
            _log.warning("not_enrolled", instance=str(machine.instance_id), url=machine.nats_url, reason=refusal)
        said = refusal
        await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
        failures += 1
    write_durably(marker, msgspec.json.encode(done))
    _log.info("enrolled", instance=str(machine.instance_id), key=done.key)


async def _ask(machine: Machine, config: AgentConfig, key: str) -> str | None:
    """None once accepted, else why not."""
    request = EnrolRequest(
        instance_id=machine.instance_id,
        public_key=key,
        token=nkey.public_key(machine.token),
        proof=nkey.sign(machine.token, enrolment_claim(machine.instance_id, key)),
    )
    access = None
    if machine.access is not None:
        access = config.directory / "enrol.nk"
        write_durably(access, machine.access.encode())
    settings = BrokerSettings(url=machine.nats_url, seed_file=access, tls_ca=config.tls_ca)
    try:
        client = await connect(settings, name=_USER, inbox_prefix=f"_INBOX.{_USER}", timeout=_CONNECT)
        try:
            answer = await client.request(enrolment_subject(), msgspec.json.encode(request), timeout=_ANSWER)
        finally:
            await client.close()
        reply = msgspec.json.decode(answer.data, type=EnrolReply)
    except (BrokerError, nats.errors.Error, OSError, TimeoutError, msgspec.MsgspecError) as error:
        return str(error) or repr(error)
    return None if reply.accepted else f"{reply.code}: {reply.message}"
