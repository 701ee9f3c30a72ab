"""What can go wrong for a publisher, each with a stable code and the next thing to do.

Guarantees that every failure of `engine/client.py` is one of these classes. It does not say whether a command was
stored where that cannot be known: `unacknowledged` says so itself, and the operation can be asked for by its id.
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of all. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InvalidCommand(ClientError):  # noqa: N818 - named as what it is about
    """The command was not sent: `invalid_argument`, `unsupported` or `too_large`."""


class Unreachable(ClientError):  # noqa: N818
    """The broker cannot be talked to: `unreachable` or `unauthorised`."""


class NotPublished(ClientError):  # noqa: N818
    """The broker did not take the command: `no_stream`, `stream_full`, `broker_refused`, or `unacknowledged`."""


class QueryFailed(ClientError):  # noqa: N818
    """A query was answered with an error; the code is the answer's own."""


class TimedOut(ClientError):  # noqa: N818
    """No answer within the time given: `timeout`. What was asked for may still happen."""

    def __init__(self, message: str) -> None:
        super().__init__("timeout", message)


class Rejected(ClientError):  # noqa: N818
    """The command was decided against and changed nothing; `reason` is the engine's."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.reason = reason


class OperationFailed(ClientError):  # noqa: N818
    """The operation ended without its goal; what it had made was undone as far as its lifecycle says."""


class OperationCancelled(ClientError):  # noqa: N818
    """The operation was cancelled, by a command to cancel or to delete."""

    def __init__(self, message: str) -> None:
        super().__init__("cancelled", message)
