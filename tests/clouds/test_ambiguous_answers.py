"""Whatever becomes of a call or of its answer, each effect ends paid, and the cloud as if nothing had gone wrong.

Every call of every effect meets every fault; which calls there are is found by running. With a fence or the stable key
switched off the same matrix shows doubles.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from aggregates import effects
from aggregates.effects import CloudEffect
from aggregates.obligations import OBLIGATIONS
from engine.clouds.port import PayError
from engine.clouds.simulated.faults import FAULTS, Call, Fault, Kind
from engine.clouds.simulated.ground import FENCES, PORT_MAC, SERVER_PORT, VOLUME_ATTACHMENT
from tests.clouds.ambiguous import EFFECTS, SEVERAL, Drawn, Storm, Trial, kinds
from tests.simulation.virtual_time import VirtualLoop, run
from tests.support.given import everywhere

LASTING = frozenset({Kind.REFUSED})


def _key() -> Iterator[str]:
    return itertools.repeat("key")


def _fresh_keys() -> Iterator[str]:
    return (str(uuid4()) for _ in itertools.count())


def _tried(effect: type[CloudEffect], drawn: Drawn, *, keys: Iterator[str] | None = None, **given: Any) -> Trial:
    async def trial() -> Trial:
        return await Trial(drawn, **given).pay(EFFECTS[effect], keys or _key())

    return run(trial(), VirtualLoop())


def _there(trial: Trial) -> dict[str, list[Any]]:
    return run(trial.there(), VirtualLoop())


def _cells(effect: type[CloudEffect], build_time: float) -> Iterator[tuple[int, str, str, Fault]]:
    """Each call that the effect makes when all goes well, and each fault: n-th call, its name, the fault."""
    calls = _tried(effect, Drawn(), build_time=build_time).drawn.calls
    for (n, call), (name, fault) in itertools.product(enumerate(calls), FAULTS.items()):
        if fault.kind is not Kind.STALE or call.name.startswith("list_"):
            yield n, call.name, name, fault


@pytest.mark.parametrize("build_time", [0.0, 7.0], ids=["at once", "slow"])
@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_every_call_may_meet_every_fault(effect: type[CloudEffect], build_time: float) -> None:
    undisturbed = _tried(effect, Drawn(), build_time=build_time)
    assert not undisturbed.errors
    wanted = _there(undisturbed)
    for n, call, name, fault in _cells(effect, build_time):
        times = SEVERAL if fault.kind in LASTING else 1
        trial = _tried(effect, Drawn(n, fault, times), build_time=build_time)
        cell = f"{effect.__name__}: call {n}, {call}: {name}"
        assert _there(trial) == wanted, cell
        assert trial.changes == undisturbed.changes, cell
        assert trial.facts.keys() == undisturbed.facts.keys(), cell


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: effect.__name__)
def test_faults_may_come_in_any_number(effect: type[CloudEffect]) -> None:
    undisturbed = _tried(effect, Drawn(), build_time=7.0)
    for seed in range(20):
        trial = _tried(effect, Storm(seed), build_time=7.0)
        assert _there(trial) == _there(undisturbed), seed
        assert trial.changes == undisturbed.changes, seed


def test_every_effect_that_a_cloud_can_be_asked_for_is_in_the_matrix() -> None:
    assert kinds(CloudEffect) == EFFECTS.keys()


@pytest.mark.parametrize("state", sorted(OBLIGATIONS))
def test_no_owing_state_makes_more_than_one_changing_call_for_a_resource(state: str) -> None:
    owed = everywhere()[state].owes()
    assert owed is not None
    if isinstance(owed.effect, CloudEffect):
        calls = _tried(type(owed.effect), Drawn(), build_time=7.0).drawn.calls
        assert _changing(calls) <= 1, calls


def test_control_two_changing_calls_for_a_resource_are_noticed() -> None:
    twice = [Call(name=name, args={"id": "server-1"}, request_id="key") for name in ("stop_server", "delete_server")]
    assert _changing(twice) == 2


def _changing(calls: list[Call]) -> int:
    """The most calls that make or change something of one resource; those that only look are for no request."""
    counted = Counter(str(call.args.get("id", call.args.get("name", call.args))) for call in calls if call.request_id)
    return max(counted.values(), default=0)


def _doubled(effect: type[CloudEffect], **given: Any) -> int:
    """In how many cells the cloud carried something out more than once."""
    undisturbed = _tried(effect, Drawn(), **given)
    doubled = 0
    for n, _, _, fault in _cells(effect, 0.0):
        try:
            trial = _tried(effect, Drawn(n, fault), **given)
        except (PayError, AssertionError):
            continue
        doubled += trial.changes.total() > undisturbed.changes.total()
    return doubled


@pytest.mark.parametrize(
    ("effect", "fence"),
    [
        (effects.EnsurePort, PORT_MAC),
        (effects.EnsureServer, SERVER_PORT),
        (effects.EnsureAttachment, VOLUME_ATTACHMENT),
    ],
)
def test_control_without_its_fence_the_matrix_shows_doubles(effect: type[CloudEffect], fence: str) -> None:
    assert _doubled(effect) == 0
    assert _doubled(effect, fences=FENCES - {fence}) > 0


def test_control_without_the_stable_key_the_matrix_shows_doubles() -> None:
    assert _doubled(effects.RebootServer) == 0
    undisturbed = _tried(effects.RebootServer, Drawn())
    trials = [
        _tried(effects.RebootServer, Drawn(n, fault), keys=_fresh_keys())
        for n, _, _, fault in _cells(effects.RebootServer, 0.0)
    ]
    assert any(trial.changes.total() > undisturbed.changes.total() for trial in trials)


def test_control_without_the_wait_for_late_calls_the_matrix_shows_doubles() -> None:
    assert _doubled(effects.RebootServer, latest_effect=timedelta(0)) > 0
    assert _doubled(effects.EnsureVolume, latest_effect=timedelta(0)) > 0
