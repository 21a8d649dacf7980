"""A network that fails, between a client and a server of HTTP: a proxy that does so on demand."""

from __future__ import annotations

import http.client
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

FAULTS = ("500", "503", "half", "lost", "500 after", "slow", "cut")
"""What may happen to a request.

``500``, ``503``: it is refused, and never carried out. ``lost``: it is carried out, and no answer
comes back. ``500 after``: it is carried out, and the answer says that it failed. ``half``: the
answer ends in the middle of its body. ``cut``: the line breaks before the request is whole.
``slow``: the answer takes its time.
"""
SLOW_S = 0.3
# What concerns one connection, not the request; the body is sent on as it came.
_OF_ONE_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "expect")

Choose = Callable[[str, str], str]
"""Which of the faults befalls a request, by its method and path; empty for none."""


class FaultyProxy:
    """Passes requests on to ``upstream`` and counts, by name, the faults that befell them.

    ``created`` counts, for each object, how often the server said that it had created it where
    there was none (``If-None-Match: *``). More than once is the server's own breach, as long as
    nobody removed the object.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.choose: Choose = lambda method, path: ""
        self.befallen: Counter[str] = Counter()
        self.created: Counter[str] = Counter()
        self.requests = 0
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        """Serve on a free port of the loopback until the block ends."""
        proxy = self

        class Handler(_Handler):
            served_by = proxy

        with _Server(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_address[1]}"
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield self
            finally:
                server.shutdown()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the server; it is opened when it is used, and again when it broke."""
        return http.client.HTTPConnection(self.upstream.netloc, timeout=120)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    served_by: FaultyProxy
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._server = self.served_by.connect()

    def finish(self) -> None:
        self._server.close()
        super().finish()

    def _serve(self) -> None:
        proxy, body = self.served_by, self._read_body()
        fault = proxy.choose(self.command, self.path)
        proxy.requests += 1
        proxy.befallen[fault] += bool(fault)
        if fault in ("500", "503"):
            return self._answer(int(fault), [], _explain(fault))
        if fault == "cut":
            # As a server sees it: less than was announced, hence nothing that it may believe.
            self.close_connection = True
            return None
        if fault == "slow":
            time.sleep(SLOW_S)
        try:
            status, headers, content = self._pass_on(body)
        except (OSError, http.client.HTTPException):  # the server is gone, or just starts again
            self.close_connection = True
            return None
        if self.command == "PUT" and status == 200 and self.headers.get("If-None-Match") == "*":
            proxy.created[self.path] += 1
        if fault == "lost":
            self.close_connection = True
        elif fault == "500 after":
            self._answer(500, [], _explain(fault))
        else:
            self._answer(status, headers, content, whole=fault != "half")
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of the server's own answer."""
        headers = {name: value for name, value in self.headers.items() if _is_passed_on(name)}
        try:
            self._server.request(self.command, self.path, body=body, headers=headers)
            answer = self._server.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except BaseException:
            self._server.close()
            raise

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, whole: bool = True
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if _is_passed_on(name) and name.lower() != "content-length":
                self.send_header(name, value)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if whole else content[: len(content) // 2])
        self.close_connection = self.close_connection or not whole

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the counts are what is told."""


def _is_passed_on(name: str) -> bool:
    return name.lower() not in _OF_ONE_CONNECTION


def _explain(fault: str) -> bytes:
    code = "SlowDown" if fault == "503" else "InternalError"
    return f"<Error><Code>{code}</Code><Message>{fault}</Message></Error>".encode()
