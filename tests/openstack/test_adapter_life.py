"""A whole life on the adapter: each effect paid twice, the second time without a request that changes anything.

And the same with the process dead around each change, or its answer lost: at the end there is one of everything, and
each change was made once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest
from openstack.connection import Connection

from aggregates.effects import CloudEffect
from engine import crash_points
from engine.clouds.port import UnknownOutcomeError
from tests.openstack.adapter import Dies, Doors, Instance, adapter, configured, dying
from tests.openstack.ledger import holdings, remove
from tests.openstack.proxy import Door


class Step(NamedTuple):
    """An effect, the call that brings it about, and that call's request."""

    effect: Callable[[Instance], CloudEffect]
    call: str
    service: str
    method: str
    path: str


ACTION = r"/servers/[^/]+/action$"
LIFE = (
    Step(Instance.security_group, "create_security_group", "network", "POST", r"/security-groups$"),
    Step(lambda i: i.rules("0.0.0.0/0", "10.1.0.0/16"), "create_security_group_rules", "network", "POST", r"-rules$"),
    Step(Instance.server_group, "create_server_group", "compute", "POST", r"/os-server-groups$"),
    Step(Instance.port, "create_port", "network", "POST", r"/ports$"),
    Step(Instance.volume, "create_volume", "block_storage", "POST", r"/volumes$"),
    Step(Instance.server, "create_server", "compute", "POST", r"/servers$"),
    Step(Instance.address, "create_ip", "network", "POST", r"/floatingips$"),
    Step(Instance.attachment, "attach_volume", "compute", "POST", r"/os-volume_attachments$"),
    Step(lambda i: i.only("10.1.0.0/16"), "delete_security_group_rule", "network", "DELETE", r"/security-group-rules/"),
    Step(lambda i: i.extend(2), "extend_volume", "block_storage", "POST", r"/action$"),
    Step(Instance.reboot, "reboot_server", "compute", "POST", ACTION),
    Step(Instance.snapshot, "create_snapshot", "block_storage", "POST", r"/snapshots$"),
    Step(Instance.rebuild, "rebuild_server", "compute", "POST", ACTION),
    Step(Instance.no_snapshot, "delete_snapshot", "block_storage", "DELETE", r"/snapshots/"),
    Step(Instance.stop, "stop_server", "compute", "POST", ACTION),
    Step(Instance.start, "start_server", "compute", "POST", ACTION),
    Step(lambda i: i.resize("lab.small"), "resize_server", "compute", "POST", ACTION),
    Step(Instance.revert, "revert_server", "compute", "POST", ACTION),
    Step(Instance.migrate, "migrate_server", "compute", "POST", ACTION),
    Step(Instance.confirm, "confirm_server", "compute", "POST", ACTION),
    Step(Instance.detachment, "detach_volume", "compute", "DELETE", r"/os-volume_attachments/"),
    Step(Instance.no_server, "delete_server", "compute", "DELETE", r"/servers/"),
    Step(Instance.no_address, "delete_ip", "network", "DELETE", r"/floatingips/"),
    Step(Instance.no_port, "delete_port", "network", "DELETE", r"/ports/"),
    Step(Instance.no_volume, "delete_volume", "block_storage", "DELETE", r"/volumes/"),
    Step(Instance.no_group, "delete_security_group", "network", "DELETE", r"/security-groups/"),
    Step(Instance.no_servers, "delete_server_group", "compute", "DELETE", r"/os-server-groups/"),
)
BUILT = 8  # steps, after which there is one of everything


@pytest.fixture
def left(admin: Connection) -> Iterator[set[str]]:
    """Ids of instances, of which nothing is left when the test is over."""
    ids: set[str] = set()
    yield ids
    for each in ids:
        remove(admin, each)


class Life:
    """Walks through a life. `paid(step)` pays, whatever comes in between."""

    def __init__(self, service: Connection, admin: Connection, through: Doors, left: set[str]) -> None:
        self.through = through
        self.config = configured(service)
        self._service = service
        self._admin = admin
        self._left = left
        self.stack = AsyncExitStack()
        self.instance: Instance

    async def __aenter__(self) -> Life:
        cloud = await self.stack.enter_async_context(adapter(self.config, self.through))
        self.instance = Instance(self._service, cloud)
        self._left.add(str(self.instance.id))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stack.aclose()

    async def begins_anew(self) -> None:
        """Another process, which knows what is recorded and no more."""
        await self.stack.aclose()
        self.instance.cloud = await self.stack.enter_async_context(adapter(self.config, self.through))

    def there(self) -> Counter[str]:
        """How many of each kind there are in the cloud."""
        return Counter(each.kind for each in holdings(self._admin, str(self.instance.id)))


ONE_OF_EACH = Counter(["security group", "server group", "port", "volume", "server", "floating ip"])


@pytest.fixture
async def life(service: Connection, admin: Connection, through: Doors, left: set[str]) -> AsyncIterator[Life]:
    """A life that begins."""
    async with Life(service, admin, through, left) as made:
        yield made


@pytest.mark.timeout(600)
async def test_an_effect_that_is_true_is_paid_without_a_change(life: Life) -> None:
    for number, step in enumerate(LIFE):
        key = f"key {number}"
        effect = step.effect(life.instance)
        first = await life.instance.pay(effect, key)
        before = len(life.through.changes())
        assert await life.instance.pay(effect, key) == first, step.call
        assert life.through.changes()[before:] == [], step.call
        if number == BUILT - 1:
            assert life.there() == ONE_OF_EACH
    assert life.there() == Counter()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("point", ["call", "answer"])
async def test_a_death_around_a_change_leaves_one_of_everything(life: Life, point: str) -> None:
    undone = 0
    for number, step in enumerate(LIFE):
        key = f"key {number}"
        effect = step.effect(life.instance)
        token = crash_points.listener.set(dying(point, step.call))
        try:
            await life.instance.pay(effect, key)
        except Dies:
            undone += 1
        finally:
            crash_points.listener.reset(token)
        await life.begins_anew()
        await life.instance.pay(effect, key)
        if number == BUILT - 1:
            assert life.there() == ONE_OF_EACH
    assert undone == len(LIFE)
    assert life.there() == Counter()
    _once(life)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("door", [Door.ANSWER_LOST, Door.FAILS])
async def test_what_a_lost_answer_hides_is_found_by_the_next_look(life: Life, door: Door) -> None:
    for number, step in enumerate(LIFE):
        key = f"key {number}"
        effect = step.effect(life.instance)
        life.through.at[step.service].plan(step.method, step.path, door)
        with pytest.raises(UnknownOutcomeError):
            await life.instance.pay(effect, key)
        await life.instance.pay(effect, key)
        if number == BUILT - 1:
            assert life.there() == ONE_OF_EACH
    assert life.there() == Counter()
    _once(life)


def _once(life: Life) -> None:
    """Each change was carried out once, as far as the services themselves know."""
    asked = Counter(
        (each.method, each.path.partition("?")[0])
        for each in life.through.seen
        if each.changes and each.status in (0, *range(200, 300)) and not each.path.endswith("/action")
    )
    made = Counter(path for (method, path), times in asked.items() if method == "POST" for _ in range(times))
    assert {path.rsplit("/", 1)[-1]: times for path, times in made.items()} == {
        "security-groups": 1,
        "security-group-rules": 1,
        "os-server-groups": 1,
        "ports": 1,
        "volumes": 1,
        "snapshots": 1,
        "servers": 1,
        "floatingips": 1,
        "os-volume_attachments": 1,
        "metadata": 1,
    }
