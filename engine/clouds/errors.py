"""What the answers of a cloud mean: every status and broken connection is sorted here, with the cloud's own words.

A call that makes or changes something and has no answer that tells is an `UnknownOutcomeError`; a refusal never is. A
status cannot say whether a conflict will pass: callers that know better look, and say so.
"""

from __future__ import annotations

from engine.clouds.port import FinalError, PayError, TransientError, UnknownOutcomeError

_BAD_REQUEST = frozenset({400, 405, 406, 411, 415, 422, 501})
_BUSY = frozenset({413, 429})  # older services say 413 when they mean 429
_CONFLICT = frozenset({409, 412})  # 412: it has changed since it was looked at
_QUOTA = frozenset({403, 409, 413})  # each service has its own; all say the word


class CloudAnswerError(Exception):
    """The cloud answered with this status. `retry_after`: seconds, when it asked for patience."""

    def __init__(self, status: int, words: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {words}")
        self.status = status
        self.words = words
        self.retry_after = retry_after


def sort_error(call: str, cause: Exception, *, changes: bool) -> PayError:
    """The error as the settler knows it. `changes`: the call makes or changes something."""
    if isinstance(cause, CloudAnswerError):
        return _sort_status(call, cause, changes=changes)
    if isinstance(cause, ConnectionRefusedError):
        return TransientError("cloud_unreachable", f"{call}: the cloud takes no connection: {cause}")
    error = UnknownOutcomeError if changes else TransientError
    if isinstance(cause, TimeoutError):
        return error("cloud_timeout", f"{call}: no answer in time")
    if isinstance(cause, (OSError, EOFError)):
        return error("cloud_unreachable", f"{call}: the connection broke: {str(cause) or type(cause).__name__}")
    return error("cloud_error", f"{call}: {type(cause).__name__}: {cause}")


def _sort_status(  # noqa: PLR0911 - a table
    call: str, answer: CloudAnswerError, *, changes: bool
) -> PayError:
    words = f"{call}: {answer.status} {answer.words}"
    retry_after = answer.retry_after or 0.0
    if answer.status in _QUOTA and "quota" in answer.words.lower():
        return FinalError("quota_exceeded", words)
    if answer.status == 403:  # noqa: PLR2004 - statuses are their own names
        return FinalError("cloud_forbidden", words)
    if answer.status == 404:  # noqa: PLR2004
        return FinalError("not_found", words)
    if answer.status in _CONFLICT:
        return TransientError("conflict", words, retry_after=retry_after)
    if answer.status in _BUSY and (answer.retry_after is not None or answer.status == 429):  # noqa: PLR2004
        return TransientError("cloud_busy", words, retry_after=retry_after)
    if answer.status in _BAD_REQUEST:
        return FinalError("invalid_argument", words)
    if answer.status == 401:  # noqa: PLR2004
        return TransientError("cloud_unauthorised", words)
    if answer.status < 500:  # noqa: PLR2004
        return FinalError("cloud_error", words)
    # A proxy answers 502, 503 or 504 for a service that may have begun.
    error = UnknownOutcomeError if changes else TransientError
    return error("cloud_error", words, retry_after=retry_after)
