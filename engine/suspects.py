"""Which message a process may have died of: tries are noted in the store before they are made, so that deaths count.

Guarantees that a message which kills each process that decides it is tried a bounded number of times, whichever
worker takes it up. It cannot tell such a message from bad luck: one whose every try is ended from outside, as many
times in a row, is given up too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from eventsourcing.persistence import Tracking

from engine.intake import Received
from engine.recorders import Fence
from engine.store import EventStore

DEATHS = 5  # tries that a process did not outlive, after which a message is not tried any more
_DIGIT = 16  # a note is the message's sequence times this, and the number of its tries: it only grows, as it must


class Suspects:
    """The tries that were begun, for each partition at its latest message. Own tries are not deaths: we are alive."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._own: dict[str, int] = {}

    async def deaths(self, incarnation: str, messages: Iterable[Received]) -> dict[int, int]:
        """How often a process ended after it began to decide these messages, one of each partition."""
        named = {_name(incarnation, message.partition): message for message in messages}
        notes = await self._store.positions(list(named))
        found = {}
        for name, message in named.items():
            note = notes.get(name, 0)
            sequence, tries = divmod(note, _DIGIT)
            died = tries - 1 if note == self._own.get(name) else tries
            found[message.partition] = died if sequence == message.sequence else 0
        return found

    async def try_(
        self, incarnation: str, messages: Iterable[Received], deaths: Mapping[int, int], fences: Iterable[Fence] = ()
    ) -> None:
        """Note that these messages, one of each partition, are about to be decided. Raises `Conflict`."""
        notes = {
            _name(incarnation, message.partition): message.sequence * _DIGIT + deaths[message.partition] + 1
            for message in messages
        }
        fresh = {name: note for name, note in notes.items() if self._own.get(name) != note}
        if fresh:
            positions = [Tracking(name, note) for name, note in fresh.items()]
            await self._store.commit([], positions=positions, fences=fences)
            self._own.update(fresh)


def _name(incarnation: str, partition: int) -> str:
    return f"tries/{incarnation}/{partition}"
