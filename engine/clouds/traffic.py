"""How often the services of a cloud were called, and how often they did not do their part. In memory: since the start.

An answer is an answer, also when it says no: a quota that is full or a name that is not found is none of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

_UNANSWERED = frozenset({"cloud_timeout", "cloud_unreachable"})
_FAILED = frozenset({"cloud_error", "cloud_unauthorised"})


class Counts(msgspec.Struct, kw_only=True):
    """What became of the calls to one service.

    `busy`: refused as one too many. `unanswered`: no connection, or no answer in time. `failed`: 5xx, and whatever else
    nobody expects.
    """

    calls: int = 0
    busy: int = 0
    unanswered: int = 0
    failed: int = 0

    def note(self, code: str | None) -> None:
        """One more call, which was answered as it should be, or else ended with an error of this code."""
        self.calls += 1
        self.busy += code == "cloud_busy"
        self.unanswered += code in _UNANSWERED
        self.failed += code in _FAILED


NOBODYS: Mapping[str, Counts] = MappingProxyType({})  # of a cloud that is asked for nothing over the network
