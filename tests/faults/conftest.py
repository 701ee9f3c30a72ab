"""The engine around a simulated cloud, as in tests/engine, for what goes wrong around it and in it."""

from __future__ import annotations

import pytest

from engine.deciding import AGGREGATES
from tests.engine.conftest import broker, engine, publisher
from tests.faults.brittle import Brittle

__all__ = ["brittle", "broker", "engine", "publisher"]


@pytest.fixture
def brittle(monkeypatch: pytest.MonkeyPatch) -> type[Brittle]:
    """The engine creates these."""
    monkeypatch.setitem(AGGREGATES, "instance", Brittle)
    monkeypatch.setattr(Brittle, "tried", 0)
    return Brittle
