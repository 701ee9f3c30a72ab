"""Named points at which a process can be made to die: the boundaries that the crash matrix goes through.

Passing one costs a look at a context variable, and does nothing unless somebody listens in this context. A listener
that returns lets the process go on; one that kills it, or raises, shows what that moment leaves behind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

Listener = Callable[[str, str], None]

listener: ContextVar[Listener | None] = ContextVar("crash_point_listener", default=None)


def reach(point: str, subject: str = "") -> None:
    """The process is at this point, about this subject: an owing state, a call, a stream."""
    heard = listener.get()
    if heard is not None:
        heard(point, subject)
