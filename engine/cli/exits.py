"""The exit codes: one for each way in which a call can end, fixed for scripts.

Guarantees a code for every error of the client. A code says the kind; the error's own code says the case.
"""

from __future__ import annotations

from enum import IntEnum

from engine.client import (
    ClientError,
    InvalidCommand,
    NotPublished,
    OperationCancelled,
    OperationFailed,
    QueryFailed,
    Rejected,
    TimedOut,
    Unreachable,
)


class Exit(IntEnum):
    """How a call ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    NOT_FOUND = 4
    TIMEOUT = 5
    UNREACHABLE = 6
    CANCELLED = 7
    PARKED = 8
    NOT_STORED = 9
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "the operation failed, or the query could not be answered",
    Exit.USAGE: "wrong arguments; nothing was sent",
    Exit.REJECTED: "the engine rejected the command; nothing was changed",
    Exit.NOT_FOUND: "no such instance, operation or program",
    Exit.TIMEOUT: "no answer within --timeout; what was asked for may still happen",
    Exit.UNREACHABLE: "the broker or the engine cannot be reached, or refuses us",
    Exit.CANCELLED: "the operation was cancelled",
    Exit.PARKED: "the operation waits for an operator",
    Exit.NOT_STORED: "the broker did not acknowledge the command",
    Exit.INTERRUPTED: "interrupted; an operation that was waited for goes on",
}
EPILOG = "\n".join(("Exit codes:", *(f"{code.value:>3}  {text}" for code, text in MEANING.items())))

_KINDS: tuple[tuple[type[ClientError], Exit], ...] = (
    (InvalidCommand, Exit.USAGE),
    (Unreachable, Exit.UNREACHABLE),
    (NotPublished, Exit.NOT_STORED),
    (TimedOut, Exit.TIMEOUT),
    (Rejected, Exit.REJECTED),
    (OperationFailed, Exit.FAILED),
    (OperationCancelled, Exit.CANCELLED),
)
_QUERIES = {
    "not_found": Exit.NOT_FOUND,
    "no_responders": Exit.UNREACHABLE,
    "timeout": Exit.TIMEOUT,
    "invalid_argument": Exit.USAGE,
}


class CliError(ClientError):
    """An error of the program itself, with its exit."""

    def __init__(self, exit_code: Exit, code: str, message: str) -> None:
        super().__init__(code, message)
        self.exit_code = exit_code


def exit_of(error: ClientError) -> Exit:
    """The exit code of an error."""
    if isinstance(error, CliError):
        return error.exit_code
    if isinstance(error, QueryFailed):
        return _QUERIES.get(error.code, Exit.FAILED)
    if isinstance(error, Rejected) and error.code == "not_found":
        return Exit.NOT_FOUND
    return next((code for kind, code in _KINDS if isinstance(error, kind)), Exit.FAILED)
