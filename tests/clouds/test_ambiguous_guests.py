"""Whatever becomes of a request to a guest agent or of the agent, each verb ends carried out, under its one key.

Every verb meets every fault: answers lost, agents that die in the middle or are replaced, are slow or silent. Under
another key each time the same matrix shows doubles.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from aggregates import effects
from aggregates.effects import GuestEffect
from aggregates.obligations import OBLIGATIONS
from engine.clouds.port import FinalError, PayError, TransientError
from engine.clouds.simulated import GUEST_FAULTS, GuestFault, SimulatedAgents, SimulatedGuests
from engine.clouds.simulated.guests import Answer, GuestFaultKind
from engine.messages import GuestRequest, GuestVerb
from tests.clouds.ambiguous import TRIES, kinds
from tests.simulation.virtual_time import VirtualLoop, run
from tests.support.given import everywhere

INSTANCE = UUID(int=7)
START = effects.StartDatabase(instance_id=INSTANCE, ram=512, overrides={})
STOP = effects.StopDatabase(instance_id=INSTANCE)
PREPARE = effects.PrepareDatabase(
    instance_id=INSTANCE,
    project="acme",
    datastore="postgresql",
    datastore_version="16",
    ram=512,
    volume_size=1,
    databases=(),
    users=(),
    root_password_ref=None,
    overrides={},
)
REBUILD = effects.RebuildDatabase(instance_id=INSTANCE, ram=512, volume_size=1, port=5432, overrides={})
# Each effect that a guest is asked for, and what it did before.
EFFECTS: tuple[tuple[GuestEffect, tuple[GuestEffect, ...]], ...] = (
    (PREPARE, ()),
    (STOP, (PREPARE,)),
    (START, (PREPARE, STOP)),
    (REBUILD, (PREPARE, STOP)),
    (effects.RestartDatabase(instance_id=INSTANCE), (PREPARE,)),
    (effects.GrowFileSystem(instance_id=INSTANCE, volume_size=2), (PREPARE,)),
    (effects.AwaitAgent(instance_id=INSTANCE), ()),
    (effects.AwaitHealthy(instance_id=INSTANCE), (PREPARE,)),
)
each_effect = pytest.mark.parametrize(("effect", "before"), EFFECTS, ids=[each.type_name for each, _ in EFFECTS])
each_fault = pytest.mark.parametrize("fault", GUEST_FAULTS.values(), ids=GUEST_FAULTS)

# The agent died when it had acted and before that was written down: then it acts again, under the same key.
AGAIN = frozenset({GuestFaultKind.DIES_AFTER, GuestFaultKind.REPLACED_AFTER})
# What stood beside the agent's journal is gone with it: that there was a database here, too.
REPLACED = frozenset({GuestFaultKind.REPLACED_BEFORE, GuestFaultKind.REPLACED_AFTER})


class Trial:
    """One effect, tried until it is paid or fails for good, and what the guest has done for it."""

    def __init__(self, agents: SimulatedAgents | None = None) -> None:
        self.agents = agents or SimulatedAgents(verb_time=1.0)
        self.verbs: list[str] = []
        self.failed: PayError | None = None
        self.facts: Mapping[str, Any] = {}

    async def pay(self, effect: GuestEffect, before: tuple[GuestEffect, ...], fault: GuestFault | None) -> Trial:
        """Try as the settler does."""
        guests = SimulatedGuests(agents=self.agents)
        for each in before:
            await guests.pay(each, f"before: {each.type_name}")
        done = len(self.agents.ledger)
        for verb in GuestVerb if fault is not None else ():
            self.agents.faults.plan(verb, fault)  # type: ignore[arg-type]
        for _ in range(TRIES):
            try:
                self.facts = await guests.pay(effect, "key")
            except TransientError as error:
                self.failed = error
            except FinalError as error:
                self.failed = error
                break
            else:
                self.failed = None
                break
        self.verbs = [deed.verb for deed in self.agents.ledger[done:] if deed.verb != "install"]
        return self


def _tried(effect: GuestEffect, before: tuple[GuestEffect, ...], fault: GuestFault | None, **given: Any) -> Trial:
    async def trial() -> Trial:
        agents: Callable[..., SimulatedAgents] = given.pop("agents", SimulatedAgents)
        return await Trial(agents(verb_time=1.0)).pay(effect, before, fault)

    return run(trial(), VirtualLoop())


@each_fault
@each_effect
def test_every_verb_may_meet_every_fault(
    effect: GuestEffect, before: tuple[GuestEffect, ...], fault: GuestFault
) -> None:
    undisturbed = _tried(effect, before, None)
    assert len(undisturbed.verbs) <= 1
    trial = _tried(effect, before, fault)
    if fault.kind in REPLACED and before and trial.failed is not None:
        assert "not_prepared" in trial.failed.message or "NEW" in trial.failed.message
        return
    assert trial.failed is None
    assert trial.facts == undisturbed.facts
    assert set(trial.verbs) == set(undisturbed.verbs)
    assert len(trial.verbs) <= (2 if fault.kind in AGAIN else 1)
    assert {deed.key for deed in trial.agents.ledger if deed.verb in trial.verbs} <= {"key"}


@each_fault
def test_a_data_directory_is_made_once(fault: GuestFault) -> None:
    trial = _tried(PREPARE, (), fault)
    assert Counter(deed.verb for deed in trial.agents.ledger)["install"] == 1


def test_every_effect_that_a_guest_can_be_asked_for_is_in_the_matrix() -> None:
    assert kinds(GuestEffect) == {type(effect) for effect, _ in EFFECTS}


@pytest.mark.parametrize("state", sorted(OBLIGATIONS))
def test_no_owing_state_asks_a_guest_for_more_than_one_verb(state: str) -> None:
    owed = everywhere()[state].owes()
    assert owed is not None
    for effect, before in EFFECTS:
        if type(effect) is type(owed.effect):
            assert len(_tried(effect, before, None).verbs) <= 1


class Forgetful(SimulatedAgents):
    """Is asked under another key each time."""

    async def request(self, subject: str, payload: bytes, timeout: float) -> Answer:
        request = msgspec.json.decode(payload, type=GuestRequest)
        request = msgspec.structs.replace(request, key=str(uuid4()))
        return await super().request(subject, msgspec.json.encode(request), timeout)


def test_control_without_the_stable_key_the_matrix_shows_doubles() -> None:
    doubled = {
        fault.kind
        for (effect, before), fault in itertools.product(EFFECTS, GUEST_FAULTS.values())
        if len(_tried(effect, before, fault, agents=Forgetful).verbs) > 1
    }
    assert {GuestFaultKind.ANSWER_LOST, GuestFaultKind.DIES_ANSWERING, GuestFaultKind.SLOW} <= doubled


def test_an_agent_that_never_answers_is_a_transient_error() -> None:
    async def ask() -> PayError:
        agents = SimulatedAgents()
        agents.faults.plan("stop", GUEST_FAULTS["request_lost"], times=1000)
        with pytest.raises(TransientError) as raised:
            await SimulatedGuests(agents=agents).pay(STOP, "key")
        return raised.value

    assert run(ask(), VirtualLoop()).code == "guest_unreachable"
