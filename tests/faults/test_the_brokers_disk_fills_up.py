"""The embedded broker's disk fills up and has room again: it takes commands again, and has what it acknowledged."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import nats.errors
import structlog.testing
from nats.js import JetStreamContext

from engine import embedded
from engine.broker import COMMAND_STREAM, MIB, connect, ensure_streams
from engine.credentials import inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.state import StateDirectory
from engine.tasks import end
from tests.faults.small_disk import SmallDisk, small_disk
from tests.support.eventually import eventually


async def _publish(stream: JetStreamContext) -> bool:
    try:
        await stream.publish("holdfast.v1.cmd.acme.instance.1.restart", b"x" * 4096, timeout=1)
    except (nats.errors.Error, OSError):
        return False
    return True


def _fill(disk: SmallDisk, broker_log: Path) -> None:
    """Fill it; where no disk may be mounted, the broker is only made to have said so."""
    if disk.mounted:
        disk.fill()
    else:
        with broker_log.open("ab") as said:
            said.write(b"[ERR] JetStream failed to store a msg: write 1.blk: no space left on device\n")


async def test_a_broker_whose_disk_was_full_takes_commands_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, structlog.testing.capture_logs() as said:
        state = StateDirectory(disk.directory / "state")
        state.prepare()
        broker = EmbeddedBroker(state, None, patience=3.0)
        await broker.start()
        supervising = asyncio.create_task(broker.supervise())
        client = await connect(broker.settings("worker"), name="worker", inbox_prefix=inbox_prefix("worker"))
        stream = client.jetstream()
        await ensure_streams(stream, command_bytes=4 * MIB, event_bytes=4 * MIB, dead_letter_bytes=MIB)
        acknowledged = sum([await _publish(stream) for _ in range(20)])
        assert acknowledged == 20
        first = broker.pid
        await asyncio.to_thread(_fill, disk, state.broker / "nats-server.log")
        if disk.mounted:
            for _ in range(3):
                acknowledged += await _publish(stream)
        await asyncio.to_thread(disk.make_room)

        async def taken() -> bool:
            return await _publish(stream) and broker.pid not in (0, first)

        await eventually(taken, within=60)
        info = await stream.stream_info(COMMAND_STREAM)
        assert info.state.messages > acknowledged
        assert {"broker_disk_full", "broker_restarted"} <= {each["event"] for each in said}
        await client.close()
        await end(supervising)
        await broker.stop()


def test_the_words_of_a_full_disk_are_the_systems() -> None:
    assert os.strerror(errno.ENOSPC).lower().encode() in embedded._DISK_FULL
    assert os.strerror(errno.EDQUOT).lower().encode() in embedded._DISK_FULL
