"""Every answer and every broken connection is sorted in one way, and keeps the cloud's own words."""

from __future__ import annotations

import pytest

from engine.clouds.errors import CloudAnswerError, sort_error
from engine.clouds.port import FinalError, TransientError, UnknownOutcomeError

WORDS = "No valid host was found."


@pytest.mark.parametrize("changes", [False, True], ids=["looks", "changes"])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_argument", FinalError),
        (401, "cloud_unauthorised", TransientError),
        (403, "cloud_forbidden", FinalError),
        (404, "not_found", FinalError),
        (409, "conflict", TransientError),
        (412, "conflict", TransientError),
        (413, "cloud_error", FinalError),
        (422, "invalid_argument", FinalError),
        (429, "cloud_busy", TransientError),
        (500, "cloud_error", UnknownOutcomeError),
        (502, "cloud_error", UnknownOutcomeError),
        (503, "cloud_error", UnknownOutcomeError),
        (504, "cloud_error", UnknownOutcomeError),
    ],
)
def test_a_status_is_sorted(status: int, code: str, kind: type[Exception], changes: bool) -> None:
    error = sort_error("create_server", CloudAnswerError(status, WORDS), changes=changes)
    expected = TransientError if kind is UnknownOutcomeError and not changes else kind
    assert (type(error), error.code) == (expected, code)
    assert error.message == f"create_server: {status} {WORDS}"


@pytest.mark.parametrize("status", [403, 409, 413])
def test_a_quota_of_the_cloud_does_not_pass(status: int) -> None:
    answer = CloudAnswerError(status, "Quota exceeded for resources: ['port'].", retry_after=0.0)
    error = sort_error("create_port", answer, changes=True)
    assert (type(error), error.code) == (FinalError, "quota_exceeded")


@pytest.mark.parametrize("status", [409, 413, 429, 503])
def test_the_cloud_says_how_long_to_wait(status: int) -> None:
    error = sort_error("create_server", CloudAnswerError(status, WORDS, retry_after=7.5), changes=True)
    assert isinstance(error, TransientError)
    assert error.retry_after == 7.5


@pytest.mark.parametrize(
    ("cause", "code", "known"),
    [
        (ConnectionRefusedError("refused"), "cloud_unreachable", True),
        (ConnectionResetError("reset"), "cloud_unreachable", False),
        (BrokenPipeError(), "cloud_unreachable", False),
        (EOFError(), "cloud_unreachable", False),
        (TimeoutError(), "cloud_timeout", False),
        (RuntimeError("an adapter's own"), "cloud_error", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_connection_leaves_a_change_unknown_unless_it_was_never_made(
    cause: Exception, code: str, known: bool
) -> None:
    change, look = (sort_error("create_server", cause, changes=changes) for changes in (True, False))
    assert type(change) is (TransientError if known else UnknownOutcomeError)
    assert type(look) is TransientError
    assert change.code == look.code == code
