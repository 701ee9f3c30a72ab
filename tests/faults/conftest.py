"""The engine around a simulated cloud, as in tests/engine, for what goes wrong around it and in it."""

from tests.engine.conftest import broker, engine, publisher

__all__ = ["broker", "engine", "publisher"]
