"""What must hold of every history of an instance, whatever is commanded and whatever fails.

A random story is told to one instance: commands, paid effects, failed attempts, final failures, parking, late
outcomes. After each step the same few sentences must be true.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregates import base
from aggregates.base import Refusal, Transitioned, configuration, transitions
from aggregates.commands import INTERVENTIONS, Command, CreateInstance, Migrate, Reboot, ResizeFlavor, ResizeVolume
from aggregates.instance import Instance
from engine.event_log import fold
from engine.mapper import MsgspecMapper
from tests.support.given import (
    EXAMPLES,
    NOON,
    YIELDS,
    advance,
    context,
    fail,
    intervention,
    pay,
    requested,
    settle,
    started,
    unanswered,
)

ID = UUID(int=7)
LEAVES = {state.id for _, state in base._walk(Instance.chart.states) if not state.states}

commands = st.one_of(
    st.sampled_from(list(EXAMPLES.values())),
    st.builds(Reboot, hard=st.booleans()),
    st.builds(ResizeVolume, new_size=st.integers(1, 5)),
    st.builds(ResizeFlavor, flavor=st.sampled_from(["small", "large", "huge"])),
    st.builds(Migrate, host=st.sampled_from([None, "host-1", "host-2", "host-3"])),
    st.just(CreateInstance(name="again", flavor="small", datastore="redis", volume_size=1)),
)
words = st.text(max_size=30)
steps = st.one_of(
    st.just("pay"),
    st.just("pay"),
    st.just("pay"),
    st.just("settle"),
    st.tuples(st.just("fail"), words),
    st.tuples(st.just("attempt"), words),
    st.tuples(st.just("park"), words),
    st.tuples(st.just("doubt"), words),
    st.just("late"),
    st.just("unanswered"),
    st.tuples(st.just("intervene"), st.sampled_from(sorted(INTERVENTIONS)), words),
    commands,
)
stories = st.lists(steps, max_size=25)
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def tell(instance: Instance, step: Any) -> None:
    """Have the step happen to the instance, where it can."""
    owed = instance.owes()
    match step:
        case Command():
            command(instance, step)
        case "settle":
            settle(instance)
        case "pay" if owed is not None:
            pay(instance)
        case ("fail", text) if instance.can("failed"):
            fail(instance, message=text)
        case ("attempt", text) if owed is not None:
            instance.note(
                "AttemptFailed",
                at=NOON,
                effect=owed.effect.type_name,
                attempt=instance.attempts + 1,
                code="timeout",
                message=text,
                retry_at=NOON + timedelta(seconds=1),
            )
        case ("doubt", text) if owed is not None:
            instance.note(
                "LastLookDue",
                at=NOON,
                effect=owed.effect.type_name,
                code="timeout",
                message=text,
                due_at=NOON + timedelta(seconds=60),
            )
        case ("park", text) if owed is not None:
            instance.note("OperationParked", at=NOON, effect=owed.effect.type_name, code="cloud_error", message=text)
        case ("intervene", name, text):
            facts: dict[str, Any] = {"facts": {}} if name == "skip_step" and text else {}
            command(instance, intervention(instance, name, reason=text, **facts))
        case "unanswered" if owed is not None:
            unanswered(instance)
        case "late" if owed is not None:
            instance.note("LateOutcome", at=NOON, effect="EnsureServer", facts=YIELDS["server_created"])


def command(instance: Instance, step: Command) -> None:
    """Have it decide; a refusal must change nothing."""
    before = (dict(vars(instance)), list(instance.pending_events))
    try:
        instance.execute(step, context())
    except Refusal as refusal:
        code = refusal.code
    else:
        return
    assert code in {"conflict", "forbidden_state", "invalid_argument", "not_found"}
    assert (dict(vars(instance)), list(instance.pending_events)) == before


def check(instance: Instance) -> None:
    """What is true after each step."""
    assert instance.state in LEAVES
    assert instance.status == configuration(Instance.chart, instance.state)[0]
    owed = instance.owes()
    assert (owed is not None) == (instance.operation is not None)
    if owed is None:
        assert instance.parked is None
        return
    assert owed.entered == instance.entered <= instance.version
    assert any(state in transitions(Instance.chart)[owed.then] for state in configuration(Instance.chart, owed.state))
    assert instance.can(owed.then)


@many
@given(stories, st.booleans())
def test_every_story_leaves_the_instance_in_a_leaf_that_owes_what_its_chart_declares(
    story: list[Any], keep: bool
) -> None:
    instance = requested(ID, keep_on_failure=keep)
    check(instance)
    for step in story:
        tell(instance, step)
        check(instance)


@many
@given(stories, st.booleans())
def test_replay_of_what_is_stored_equals_the_instance_that_lived_it(story: list[Any], keep: bool) -> None:
    instance = requested(ID, keep_on_failure=keep)
    for step in story:
        tell(instance, step)
    mapper = MsgspecMapper()
    events = instance.collect_events()
    stored = [mapper.to_stored_event(event) for event in events]
    read = [mapper.to_domain_event(each) for each in stored]
    assert read == list(events)
    assert [mapper.to_stored_event(event) for event in read] == stored
    assert vars(fold(read)) == vars(instance)


@many
@given(stories, st.booleans())
def test_an_operation_ends_settled_once_its_effects_succeed(story: list[Any], keep: bool) -> None:
    instance = requested(ID, keep_on_failure=keep)
    for step in story:
        tell(instance, step)
    passed = settle(instance)
    assert len(passed) == len(set(passed))
    assert instance.state in {"ACTIVE", "SHUTOFF", "ERROR", "FAILED", "DELETED"}


@many
@given(stories, st.booleans())
def test_what_was_asked_for_is_deleted_from_anywhere_and_only_once(story: list[Any], keep: bool) -> None:
    instance = requested(ID, keep_on_failure=keep)
    for step in story:
        tell(instance, step)
    command(instance, EXAMPLES["delete_instance"])
    settle(instance)
    assert instance.state == "DELETED"
    for again in EXAMPLES.values():
        command(instance, again)
        assert instance.state == "DELETED"


@many
@given(stories)
def test_every_transition_taken_is_one_that_the_chart_declares(story: list[Any]) -> None:
    instance = requested(ID)
    for step in story:
        tell(instance, step)
    state = "build_quota"
    names = {event: transition for transition, event in Instance.events.items()}
    for event in instance.collect_events():
        if not isinstance(event, Transitioned):
            continue
        declared = transitions(Instance.chart)[names[type(event)]]
        targets = {target for source in configuration(Instance.chart, state) for target in declared.get(source, ())}
        assert targets & set(configuration(Instance.chart, event.state))
        state = event.state
    assert state == instance.state


@many
@given(st.sampled_from(["create_instance", *EXAMPLES]), st.data())
def test_the_plan_is_what_is_passed_when_all_goes_well(name: str, data: st.DataObject) -> None:
    instance = started(name)
    assert instance.operation is not None
    plan = instance.operation.plan
    # Attempts that fail in a way that passes do not change the way.
    hindered = data.draw(st.sets(st.sampled_from(plan)))
    passed = []
    while instance.owes() is not None:
        passed.append(instance.state)
        if instance.state in hindered:
            tell(instance, ("attempt", "timeout"))
        pay(instance)
    assert tuple(passed) == plan


def test_replay_never_asks_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    instance = advance(started("resize_flavor"), "resize_flavor_health")
    fail(instance)
    settle(instance)
    events = instance.collect_events()

    def asked(*question: Any, **facts: Any) -> str:
        raise AssertionError(f"the chart was asked {question} with {sorted(facts)}")

    monkeypatch.setattr(base, "decide", asked)
    with pytest.raises(AssertionError, match="the chart was asked"):
        instance.take("deletion_requested", at=NOON, operation=started("delete_instance").operation, failure=None)
    assert vars(fold(events)) == vars(instance)


def test_history_that_todays_chart_would_refuse_is_still_read() -> None:
    instance = started("resize_volume")
    *earlier, last = instance.collect_events()
    elsewhere = type(last)(**{**vars(last), "state": "SHUTOFF"})
    folded = fold([*earlier, elsewhere])
    assert (folded.state, folded.operation) == ("SHUTOFF", None)
