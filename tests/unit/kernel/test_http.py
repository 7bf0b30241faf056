"""HTTP out, against a real server that misbehaves in every way a server can."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stamina

from avyay import http
from avyay.errors import AuthError, UnreachableError

Answer = Callable[[BaseHTTPRequestHandler, int], None]


def status(code: int, body: bytes = b"{}") -> Answer:
    def answer(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(code)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


class Server:
    def __init__(self) -> None:
        self.answer: Answer = status(200)
        self.calls = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.calls += 1
                outer.answer(self, outer.calls)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/x"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.thread.start()
    with stamina.set_testing(True, attempts=3):
        yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


def get(url: str, *, read: float = 5.0, **options: object) -> object:
    with http.client(read=read, connect=1.0) as client:
        return http.request_json(client, "GET", url, who="The server", **options)  # type: ignore[arg-type]


def test_json_comes_back(server: Server) -> None:
    server.answer = status(200, b'{"a": 1}')
    assert get(server.url) == {"a": 1}


@pytest.mark.parametrize("code", [429, 500, 503])
def test_passing_faults_are_tried_again(server: Server, code: int) -> None:
    server.answer = lambda handler, call: status(code if call < 3 else 200, b"[1]")(handler, call)
    assert get(server.url) == [1]
    assert server.calls == 3


def test_lasting_faults_end(server: Server) -> None:
    server.answer = status(500)
    with pytest.raises(UnreachableError, match="HTTP 500"):
        get(server.url)
    assert server.calls == 3


@pytest.mark.parametrize("code", [401, 403])
def test_refused_keys_are_not_tried_again(server: Server, code: int) -> None:
    server.answer = status(code)
    with pytest.raises(AuthError):
        get(server.url)
    assert server.calls == 1


def test_other_errors_quote_no_secret(server: Server) -> None:
    server.answer = status(400, b"bad key sk-proj-abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(UnreachableError, match="HTTP 400") as caught:
        get(server.url)
    assert "sk-proj" not in caught.value.message


@pytest.mark.parametrize("body", [b"<html>proxy login</html>", b"", b"{"])
def test_garbage(server: Server, body: bytes) -> None:
    server.answer = status(200, body)
    with pytest.raises(UnreachableError):
        get(server.url)


def test_the_wrong_shape(server: Server) -> None:
    server.answer = status(200, b"[]")
    with pytest.raises(UnreachableError, match="unexpected"):
        get(server.url, check=lambda data: isinstance(data, dict))


def test_cut_off_in_the_middle(server: Server) -> None:
    def cut(handler: BaseHTTPRequestHandler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"a":')

    server.answer = cut
    with pytest.raises(UnreachableError):
        get(server.url)


def test_too_slow(server: Server) -> None:
    release = threading.Event()
    server.answer = lambda handler, call: (release.wait(5), status(200)(handler, call))[1]
    with pytest.raises(UnreachableError, match="Timeout"):
        get(server.url, read=0.1)
    release.set()


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with stamina.set_testing(True, attempts=2), pytest.raises(UnreachableError, match="did not answer") as caught:
        get(f"http://user:secretpass@127.0.0.1:{port}/")
    assert "secretpass" not in caught.value.message + str(caught.value.hint)


def test_redirects_are_not_followed(server: Server) -> None:
    server.answer = status(302)
    with pytest.raises(UnreachableError, match="HTTP 302"):
        get(server.url)
