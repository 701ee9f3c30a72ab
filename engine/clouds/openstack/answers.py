"""What openstacksdk raises, told as the port's table of errors takes it, with the cloud's own words and request id.

The libraries below call a connection that was never made and one that broke after the request by one name; which it was
decides whether a change may have been carried out, so the cause is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import requests.exceptions
import urllib3.exceptions
from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk

from engine.clouds.errors import CloudAnswerError, sort_error
from engine.clouds.port import FinalError, PayError, TransientError

_NEVER_CONNECTED = (
    ConnectionRefusedError,
    requests.exceptions.ConnectTimeout,
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NameResolutionError,
)


def sort_answer(call: str, cause: Exception, *, changes: bool) -> PayError:  # noqa: PLR0911 - a table
    """The error as the settler knows it. `changes`: the call makes or changes something."""
    match cause:
        case PayError():
            return cause
        case sdk.HttpException(status_code=int(status)):
            headers = cause.response.headers if cause.response is not None else {}
            words = _words(cause.details or cause.message, cause.request_id)
            return _sorted(call, status, words, headers, changes=changes)
        case keystone.HttpError():
            headers = cause.response.headers if cause.response is not None else {}
            return _sorted(call, cause.http_status, _words(cause.message, cause.request_id), headers, changes=changes)
        case keystone.ConnectFailure() | keystone.ConnectTimeout() | keystone.UnknownConnectionError():
            return sort_error(call, _broken(cause), changes=changes)
        case sdk.ServiceDiscoveryException():
            return TransientError("cloud_unreachable", f"{call}: the service does not say what it is: {cause}")
        case sdk.ConfigException() | keystone.EndpointNotFound() | keystone.MissingRequiredOptions():
            return FinalError("cloud_misconfigured", f"{call}: {cause}; holdfast cloud check says more")
    return sort_error(call, cause, changes=changes)


def _sorted(call: str, status: int, words: str, headers: Mapping[str, str], *, changes: bool) -> PayError:
    answer = CloudAnswerError(status, words, retry_after=_retry_after(headers))
    return sort_error(call, answer, changes=changes)


def _words(details: object, request_id: str | None) -> str:
    words = " ".join(str(details or "no reason given").split())
    return words if request_id is None or request_id in words else f"{words} ({request_id})"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds. A date, which is allowed as well, is as good as nothing said."""
    try:
        return max(0.0, float(headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _broken(cause: Exception) -> Exception:
    causes = list(_causes(cause))
    if any(isinstance(each, _NEVER_CONNECTED) for each in causes):
        return ConnectionRefusedError(str(cause))
    if any(isinstance(each, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)) for each in causes):
        return TimeoutError()
    return ConnectionError(str(cause))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it: libraries hand the reason on in several ways."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        told = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        waiting += [more for more in told if isinstance(more, BaseException)]
