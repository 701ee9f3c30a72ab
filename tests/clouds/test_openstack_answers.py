"""What openstacksdk raises is told as it is: a connection that was never made from one that broke."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from keystoneauth1 import adapter
from keystoneauth1.exceptions import ClientException
from keystoneauth1.noauth import NoAuth
from keystoneauth1.session import Session
from openstack import exceptions as sdk

from engine.clouds.openstack.answers import sort_answer
from engine.clouds.port import FinalError, PayError, TransientError, UnknownOutcomeError

Served = Callable[[socket.socket], None]


@contextmanager
def _service(serve: Served) -> Iterator[str]:
    """A service that does this with its one connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            connection, _ = server.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join()


def _asked(url: str, *, changes: bool = True) -> PayError:
    """What a call to it ends with."""
    asking = adapter.Adapter(Session(auth=NoAuth(endpoint=url), timeout=0.5), endpoint_override=url)
    try:
        answer = asking.post("/servers", json={}, raise_exc=False)
        sdk.raise_from_response(answer)
    except (ClientException, sdk.SDKException) as error:
        return sort_answer("nova create_server", error, changes=changes)
    raise AssertionError("it answered")


def _says(answer: bytes) -> Served:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return serve


def test_a_connection_that_is_refused_was_never_made() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = _asked(f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert (type(error), error.code) == (TransientError, "cloud_unreachable")


def test_a_name_that_is_not_known_is_no_connection() -> None:
    error = _asked("http://cloud.invalid")
    assert (type(error), error.code) == (TransientError, "cloud_unreachable")


@pytest.mark.parametrize(
    "serve",
    [
        lambda connection: connection.recv(65536),
        lambda connection: connection.close(),
        _says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
    ],
    ids=["after the request", "before the request", "in the answer"],
)
def test_a_connection_that_breaks_leaves_a_change_unknown(serve: Served) -> None:
    with _service(serve) as url:
        error = _asked(url)
    assert (type(error), error.code) == (UnknownOutcomeError, "cloud_unreachable")


def test_an_answer_that_does_not_come_leaves_a_change_unknown() -> None:
    asked = threading.Event()

    def wait(_: socket.socket) -> None:
        asked.wait(10)

    with _service(wait) as url:
        error = _asked(url)
        asked.set()
    assert (type(error), error.code) == (UnknownOutcomeError, "cloud_timeout")


def test_a_refusal_bears_the_clouds_words_and_its_request_id() -> None:
    body = b'{"badRequest": {"code": 400, "message": "Flavor could not be found."}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nX-Openstack-Request-Id: req-1\r\n"
    with _service(_says(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as url:
        error = _asked(url)
    assert (type(error), error.code) == (FinalError, "invalid_argument")
    assert error.message == "nova create_server: 400 Flavor could not be found. (req-1)"


@pytest.mark.parametrize(("said", "seconds"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)])
def test_a_busy_cloud_says_how_long_to_wait(said: str, seconds: float) -> None:
    head = f"HTTP/1.1 429 Too Many\r\nRetry-After: {said}\r\nContent-Length: 0\r\n\r\n"
    with _service(_says(head.encode())) as url:
        error = _asked(url)
    assert (type(error), error.code, error.retry_after) == (TransientError, "cloud_busy", seconds)


@pytest.mark.parametrize(("changes", "kind"), [(True, UnknownOutcomeError), (False, TransientError)])
def test_what_a_gateway_says_for_a_service_is_no_refusal(changes: bool, kind: type[PayError]) -> None:
    with _service(_says(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n")) as url:
        error = _asked(url, changes=changes)
    assert type(error) is kind
