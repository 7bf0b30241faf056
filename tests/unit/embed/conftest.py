from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import stamina

from avyay.embed.minilm import MiniLM

Answer = tuple[int, Any]  # status, and JSON or raw bytes


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    """The bundled model, loaded once: it has no state that a test could change."""
    return MiniLM(threads=2)


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up are part of these tests, not something to print about."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Endpoint:
    """A server on loopback that answers what the test says and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answer: Callable[[Any], Answer] = lambda body: (200, {})
        self.hang = threading.Event()  # set: answers come
        self.hang.set()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                endpoint.hang.wait()
                status, answer = endpoint.answer(body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Stop: from now on connections are refused."""
        self.hang.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    if server._thread.is_alive():
        server.close()


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Retries happen as often as ever, without the pauses between them."""
    with stamina.set_testing(True, attempts=10, cap=True):
        yield
