"""Replication sets of real servers, asked as the engine asks them; and a writer that numbers its rows."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from typing import Any
from uuid import UUID, uuid4

import psutil

from engine.messages import GuestReply
from tests.guest.conftest import NewServer
from tests.guest.server import PASSWORD, GuestServer
from tests.guest.tenants import REFUSED, Tenant


class ReplicationSet:
    """One set: its generation, and each member's password."""

    def __init__(self, new_server: NewServer, datastore: tuple[str, str]) -> None:
        self._new_server = new_server
        self.datastore = datastore
        self.id: UUID = uuid4()
        self.generation = 1
        self._passwords: dict[UUID, str] = {}
        self._asked = 0

    def new_member(self, **settings: Any) -> GuestServer:
        """A server without a database, its agent not yet started."""
        return self._new_server(self.datastore, beat_interval=0.2, **settings)

    async def source(self) -> GuestServer:
        """A source with the data of the contract's tests."""
        server = self.new_member()
        await server.open()
        await server.prepare()
        return server

    async def replica(self, source: GuestServer) -> GuestServer:
        """Another server, seeded from the source and following it."""
        server = self.new_member()
        await server.open()
        await self.admit(source, server)
        await self.seed(source, server)
        return server

    def password(self, member: GuestServer) -> str:
        """Of the account by which a member follows."""
        return self._passwords.setdefault(member.id, "MARKER-repl-" + secrets.token_urlsafe(16))

    def key(self, verb: str) -> str:
        """Another key for each obligation."""
        self._asked += 1
        return f"{verb}-{self._asked}"

    def common(self) -> dict[str, Any]:
        """What all verbs are told."""
        return {"replication_set": str(self.id), "generation": self.generation}

    async def admit(self, source: GuestServer, member: GuestServer) -> dict[str, Any]:
        """The member may follow this source."""
        return await source.do("admit_replica", self.key("admit"), **self.admit_args(member))

    def admit_args(self, member: GuestServer) -> dict[str, Any]:
        """Arguments of `admit_replica`."""
        return {
            **self.common(), "replica": str(member.id), "address": member.config.address,
            "password": self.password(member),
        }  # fmt: skip

    async def seed(self, source: GuestServer, member: GuestServer) -> dict[str, Any]:
        """The member has the source's data and follows."""
        return await member.do("seed_replica", self.key("seed"), **await self.seed_args(source, member))

    async def seed_args(self, source: GuestServer, member: GuestServer) -> dict[str, Any]:
        """Arguments of `seed_replica`."""
        return {
            **self.common(), "source": await self.where(source), "password": self.password(member),
            "ram": 256, "volume_size": 1, "overrides": {},
        }  # fmt: skip

    async def where(self, source: GuestServer) -> dict[str, Any]:
        """Where a source is to be found."""
        port = (await source.report())["port"]
        return {"instance_id": str(source.id), "address": source.config.address, "port": port}

    async def follow_args(self, source: GuestServer, member: GuestServer, repair: str = "none") -> dict[str, Any]:
        """Arguments of `follow_source`."""
        return {
            **self.common(), "source": await self.where(source), "password": self.password(member), "repair": repair,
        }  # fmt: skip

    async def follow(self, source: GuestServer, member: GuestServer, repair: str = "none") -> dict[str, Any]:
        """The member follows this source."""
        args = await self.follow_args(source, member, repair)
        return await member.do("follow_source", self.key("follow"), **args)

    async def tell(self, member: GuestServer, verb: str, **args: Any) -> dict[str, Any]:
        """Any other verb, done."""
        return await member.do(verb, self.key(verb), **{**self.common(), **args})

    async def ask(self, member: GuestServer, verb: str, **args: Any) -> GuestReply:
        """Any other verb, whatever its answer."""
        return await member.ask(verb, self.key(verb), **{**self.common(), **args})

    async def catch_up(self, source: GuestServer, *members: GuestServer) -> None:
        """Wait until the members have all that the source has now."""
        position = (await self.tell(source, "await_position"))["position"]
        for member in members:
            await self.tell(member, "await_position", position=position, patience=30)

    async def interrupted(self, member: GuestServer, verb: str, **args: Any) -> dict[str, Any]:
        """The facts of a verb in whose middle agent and database are killed, asked for again under its key."""
        key = self.key(verb)
        await member.post(verb, key, **args)
        deadline = time.monotonic() + 30
        while not any(line["key"] == key for line in member.journal()):
            assert time.monotonic() < deadline, member.log()
            await asyncio.sleep(0.002)
        member.kill_agent()
        for process in member.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        member.start_agent()
        return await member.do(verb, key, **args)

    async def switch(self, old: GuestServer, new: GuestServer) -> None:
        """A planned change of source."""
        last = (await self.tell(old, "fence_source"))["position"]
        self.generation += 1
        await self.tell(new, "promote_replica", position=last, patience=30)
        await self.admit(new, old)
        await self.follow(new, old)


async def tenant_of(server: GuestServer, **who: Any) -> Tenant:
    """The server's database as its tenants use it."""
    return server.tenant((await server.report())["port"], **who)


def can_write(tenant: Tenant, key: str = "probe") -> bool:
    """Whether a write is taken."""
    try:
        tenant.put(key, "here")
    except REFUSED as error:
        print(f"refused: {error}")
        return False
    return True


async def until_same(tenant: Tenant, key: str, value: str | None) -> None:
    """Wait until the tenant reads this."""
    deadline = time.monotonic() + 60
    found: object = None
    while time.monotonic() < deadline:
        with contextlib.suppress(*REFUSED):
            if (found := await asyncio.to_thread(tenant.get, key)) == value:
                return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{key} is {found!r}, not {value!r}")


class Writer:
    """Puts numbered rows into whichever servers it is told to, and remembers which were acknowledged."""

    def __init__(self, tenant: Tenant) -> None:
        self._tenant = tenant
        self.acknowledged: list[int] = []
        self.gap = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def turn_to(self, tenant: Tenant) -> None:
        """Write there from now on."""
        self._tenant = tenant

    async def until(self, count: int) -> None:
        """Wait until so many more rows are acknowledged."""
        wanted, deadline = len(self.acknowledged) + count, time.monotonic() + 60
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, f"only {len(self.acknowledged)} of {wanted} rows were taken"
            await asyncio.sleep(0.01)

    def lost(self, tenant: Tenant) -> list[int]:
        """The acknowledged rows that are not there."""
        there = tenant.keys()
        return [number for number in self.acknowledged if f"row-{number}" not in there]

    def _write(self) -> None:
        number, last = 0, time.monotonic()
        while not self._end.wait(0.005):
            number += 1
            try:
                self._tenant.put(f"row-{number}", str(number))
            except REFUSED:
                continue
            self.acknowledged.append(number)
            self.gap, last = max(self.gap, time.monotonic() - last), time.monotonic()


__all__ = ["PASSWORD", "ReplicationSet", "Writer", "can_write", "tenant_of", "until_same"]
