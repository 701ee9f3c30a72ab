"""One far side: a simulated cloud and the guests on its servers, with the ledger of both in a file if wanted.

A guest answers while its server is up, and is forgotten with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO
from uuid import UUID, uuid4

import msgspec

from engine.clouds.simulated.api import CloudApi
from engine.clouds.simulated.ground import FENCES
from engine.clouds.simulated.guests import Deed, SimulatedAgents
from engine.clouds.simulated.resources import Entry


class Site:
    """`ledger`: a file to which each change and each deed is added as a line of JSON, before it is answered."""

    def __init__(
        self,
        *,
        build_time: float = 0.0,
        verb_time: float = 0.0,
        latency: float = 0.0,
        fences: Iterable[str] = FENCES,
        new_id: Callable[[], UUID] = uuid4,
        ledger: Path | None = None,
    ) -> None:
        self.api = CloudApi(
            build_time=build_time, latency=latency, fences=fences, new_id=new_id, on_call=self._on_change
        )
        self.agents = SimulatedAgents(serves=self.api.serves, verb_time=verb_time, latency=latency, on_deed=self._write)
        self._file: IO[bytes] | None = None if ledger is None else ledger.open("ab", buffering=0)

    def close(self) -> None:
        """Close the ledger's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_change(self, entry: Entry) -> None:
        if (entry.kind, entry.action) == ("server", "delete"):
            self.agents.forget(entry.name)
        if (entry.kind, entry.action) == ("server", "rebuild"):
            self.agents.renew(entry.name)
        self._write(entry)

    def _write(self, line: Entry | Deed) -> None:
        if self._file is not None:
            self._file.write(msgspec.json.encode(line) + b"\n")
