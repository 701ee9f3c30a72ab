"""Where the engine may answer: an inbox of whoever asked, never a subject that somebody else listens on.

A reply subject comes from outside while the worker's rights reach far: without this check a publisher could have an
answer published as a command, a request to a guest or a call of the broker's own interface.
"""

from __future__ import annotations

import re

from nats.aio.client import Client

_INBOX = re.compile(r"_INBOX(\.[A-Za-z0-9_-]+)+")
_COMMON = "_INBOX"


class Answerable:
    """Says of a subject whether it is an inbox, and not one of our own connection's."""

    def __init__(self, client: Client) -> None:
        own = client.new_inbox().rpartition(".")[0]
        self._own = None if own == _COMMON else f"{own}."

    def __call__(self, subject: str) -> bool:
        """Whether an answer may go there."""
        if not _INBOX.fullmatch(subject):
            return False
        return self._own is None or not subject.startswith(self._own)
