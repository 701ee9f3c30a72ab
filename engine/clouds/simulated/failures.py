"""Errors that tests have a payment end with, whatever the cloud or the guest would have done."""

from __future__ import annotations

from engine.clouds.port import PayError


class Failures:
    """Errors to be raised instead of paying: so many times for each effect's name."""

    def __init__(self) -> None:
        self._planned: dict[str, list[PayError]] = {}

    def plan(self, effect_name: str, error: PayError, times: int) -> None:
        """The next so many payments of the effect raise the error."""
        self._planned.setdefault(effect_name, []).extend([error] * times)

    def raise_next(self, effect_name: str) -> None:
        """Raise the error that is due, if any."""
        due = self._planned.get(effect_name)
        if due:
            raise due.pop(0)
