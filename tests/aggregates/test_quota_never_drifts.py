"""Whatever happens to instances and to the commands that they owe, the quota holds what those that live have.

Instances run, fail, are cancelled and deleted twice; what they send to the quota arrives late, in any order, more than
once, or only when nobody waits for it any more. The quota is then folded from its log.
"""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import hypothesis
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregates.base import Failure, Refusal
from aggregates.catalogue import Quota as Limits
from aggregates.commands import COMMANDS, Command, CreateInstance, example
from aggregates.effects import SendCommand
from aggregates.instance import Instance
from aggregates.obligations import quota_id
from aggregates.quota import Held, Quota
from engine.event_log import fold
from tests.support.given import CATALOGUE, EXAMPLES, NOON, YIELDS, context, intervention

LIMITED = msgspec.structs.replace(CATALOGUE, quota=Limits(instances=2, ram=3000, volumes=4))
MANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
INSTANCES = tuple(uuid5(NAMESPACE_URL, f"holdfast:drift:{n}") for n in range(3))
OVER = {"DELETED", "FAILED"}


class Project:
    """Some instances, their quota, and what is under way between them."""

    def __init__(self) -> None:
        self.instances: dict[UUID, Instance] = {}
        self.log: list[Any] = []
        self._quota: Quota | None = None
        self._sent: dict[UUID, Command] = {}
        self._records: dict[UUID, Refusal | None] = {}

    def tell(self, instance_id: UUID, name: str) -> None:
        """A command to an instance, which may be refused."""
        instance = self.instances.get(instance_id)
        asked = context(catalogue=LIMITED)
        try:
            if instance is None:
                command = example(CreateInstance)
                assert isinstance(command, CreateInstance)
                self.instances[instance_id] = Instance.create(instance_id, command, asked)
            elif name == "cancel_operation":
                instance.execute(intervention(instance, name), asked)
            else:
                instance.execute(EXAMPLES[name], asked)
        except Refusal:
            return

    def go_on(self, instance_id: UUID, *, failing: bool = False) -> None:
        """The instance tries what it owes."""
        instance = self.instances.get(instance_id)
        owed = None if instance is None else instance.owes()
        if instance is None or owed is None:
            return
        if isinstance(owed.effect, SendCommand):
            command_id = uuid5(NAMESPACE_URL, owed.key)
            kind = COMMANDS["quota", owed.effect.command]
            self._sent[command_id] = msgspec.convert(owed.effect.args, kind)
            if command_id not in self._records:
                return
            refusal = self._records[command_id]
            failing = refusal is not None
            assert not failing or instance.can("failed"), refusal
        if failing and instance.can("failed"):
            failure = Failure(code="cloud_error", message="as told", state=instance.state)
            instance.take("failed", at=NOON, failure=failure)
        else:
            instance.take(owed.then, at=NOON, **owed.facts, **YIELDS.get(owed.then, {}))

    def deliver(self, ordinal: int) -> None:
        """One of the commands sent arrives, for the first time or again."""
        if not self._sent:
            return
        command_id = sorted(self._sent)[ordinal % len(self._sent)]
        if command_id in self._records:
            return  # its record answers, whatever has become of what it asked for
        asked, refusal = context(catalogue=LIMITED), None
        try:
            if self._quota is None:
                self._quota = Quota.create(quota_id("acme"), self._sent[command_id], asked)
            else:
                self._quota.execute(self._sent[command_id], asked)
        except Refusal as refused:
            refusal = refused
        self._records[command_id] = refusal
        if self._quota is not None:
            self.log += self._quota.collect_events()

    def come_to_rest(self, order: list[int]) -> None:
        """All that is owed is paid; what nobody waits for any more arrives last."""
        while any(instance.owes() is not None for instance in self.instances.values()):
            for instance_id in self.instances:
                self.go_on(instance_id)
                for ordinal in order:
                    self.deliver(ordinal)
                owed = self.instances[instance_id].owes()
                waited_for = None if owed is None else uuid5(NAMESPACE_URL, owed.key)
                if waited_for in self._sent:
                    self.deliver(sorted(self._sent).index(waited_for))
        for ordinal in range(len(self._sent)):
            self.deliver(ordinal)


NAMES = [*EXAMPLES, *["delete_instance"] * 4, "cancel_operation"]
commands = st.tuples(st.just("tell"), st.sampled_from(INSTANCES), st.sampled_from(NAMES))
steps = st.one_of(
    commands,
    st.tuples(st.just("go_on"), st.sampled_from(INSTANCES), st.booleans()),
    st.tuples(st.just("deliver"), st.integers(0, 50), st.none()),
)


FIRST = INSTANCES[0]
SENT, ON = ("deliver", 0, None), ("go_on", FIRST, False)
# A larger volume is asked for, given up, and the first of the two reservations arrives when all is over.
OVERTAKEN = [
    ("tell", FIRST, "delete_instance"), ON, SENT, ON, ON, ON, ("tell", FIRST, "resize_volume"), ON,
    ("tell", FIRST, "cancel_operation"), ON,
]  # fmt: skip


@MANY
@hypothesis.example(OVERTAKEN, [])
@given(st.lists(steps, max_size=60), st.lists(st.integers(0, 50), max_size=3))
def test_what_is_held_is_the_sum_over_the_instances_that_live(story: list[tuple[Any, ...]], order: list[int]) -> None:
    project = Project()
    for what, whom, how in story:
        if what == "tell":
            project.tell(whom, how)
        elif what == "go_on":
            for _ in range(4):
                project.go_on(whom)
            project.go_on(whom, failing=how)
        else:
            project.deliver(whom)
    project.come_to_rest(order)
    live = {each.id: each for each in project.instances.values() if each.state not in OVER}
    wanted = {each.id: Held(ram=each.flavor.ram, volumes=each.volume_size) for each in live.values()}
    quota = fold(project.log)
    assert (quota.held if quota is not None else {}) == wanted
    if quota is not None:
        assert quota.total == Held(
            ram=sum(held.ram for held in wanted.values()), volumes=sum(held.volumes for held in wanted.values())
        )
        assert len(quota.held) <= 2
