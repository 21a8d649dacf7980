"""One connection of a service: HTTP/1.1 with deadlines, a body that has an end, JSON answers.

A thread serves a connection (:mod:`http.server` does the parsing). Its reads go through a reader
with a deadline for the whole of what is read, so a client that sends a byte now and then holds
it no longer than one that sends nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from nemotron_style.steps.blocks.http.error import ClientDisconnected, HttpError
from nemotron_style.steps.blocks.serving.metrics_page import CONTENT_TYPE

SECONDS_TO_LINGER = 1.0
JSON_TYPE = "application/json"


class DeadlineReader(io.RawIOBase):
    """Reads a socket until ``end``; then every read is a ``TimeoutError``."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.end = 0.0

    def allow(self, seconds: float) -> None:
        """Set the deadline."""
        self.end = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client was too slow")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Connection(BaseHTTPRequestHandler):
    """Reads requests and hands them to ``self.server.service``."""

    protocol_version = "HTTP/1.1"
    server_version = "nemotron-style"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = -1
    path = ""
    server: Any

    @property
    def service(self) -> Any:
        return self.server.service

    def setup(self) -> None:
        super().setup()
        self.reader = DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self.reader)

    def handle_one_request(self) -> None:
        self.reader.allow(self.service.limits.idle_seconds)
        self.path, self.unread = "", False
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted and not written down: their text is nobody's business."""

    def log_error(self, format: str, *args: Any) -> None:
        """A client that sent no whole request in time."""
        if self.path or self.raw_requestline:
            self.service.count_error("slow_client")

    def handle_expect_100(self) -> bool:
        with contextlib.suppress(HttpError):
            self.read_length()
            super().handle_expect_100()
            self.wfile.flush()
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What :mod:`http.server` cannot read is refused in JSON like everything else."""
        said = message or HTTPStatus(code).phrase
        self.close_connection = True
        self.refuse(HttpError(code, "bad_request", said))

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def answer(self, method: str) -> None:
        """Answer one request, whatever it is."""
        begun = time.monotonic()
        self.unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        try:
            status, body = self.service.answer(self, method)
        except HttpError as refusal:
            self.refuse(refusal)
        except ClientDisconnected:
            self.close_connection = True
            self.service.count_error("disconnected")
        else:
            self.reply(status, body)
        if method == "POST":
            self.service.latency.observe(time.monotonic() - begun)

    def read_length(self) -> int:
        """How long the body is. Raises ``HttpError``."""
        lengths = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers or not lengths:
            raise HttpError(411, "no_length", "body: say its length in Content-Length")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise HttpError(400, "bad_length", "Content-Length: must be one whole number")
        most = self.service.limits.body_bytes
        if len(lengths[0]) > 12 or int(lengths[0]) > most:
            raise HttpError(413, "too_large", f"body: {lengths[0][:20]} bytes; it may have {most}")
        return int(lengths[0])

    def read_body(self) -> bytes:
        """The whole body. Raises ``HttpError``."""
        if self.headers.get_content_type() != JSON_TYPE:
            raise HttpError(415, "not_json", f"Content-Type: must be {JSON_TYPE}")
        length = self.read_length()
        seconds = self.service.limits.read_seconds
        self.reader.allow(seconds)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            message = f"body: not received whole within {seconds:g} s"
            raise HttpError(408, "slow_client", message) from None
        if len(body) != length and self.service.is_draining:
            raise HttpError(503, "draining", "the service is draining", retry_after=1)
        if len(body) != length:
            message = f"body: {len(body)} bytes instead of {length}"
            raise HttpError(400, "cut_short", message)
        self.unread = False
        return body

    def is_gone(self) -> bool:
        """Whether the client has closed its side, so that an answer would be for nobody.

        A drain closes that side too (nothing more is read), and then everybody is answered.
        """
        self.connection.settimeout(0)
        try:
            ended = self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        return ended and not self.service.is_draining

    def refuse(self, refusal: HttpError) -> None:
        """Answer with an error."""
        self.service.count_error(refusal.kind)
        body = self.service.write_error(refusal)
        self.reply(refusal.status, body, retry_after=refusal.retry_after)

    def reply(self, status: int, body: Mapping[str, Any] | str, *, retry_after: int = 0) -> None:
        """Send an answer; with a body unread, or while draining, it is this connection's last."""
        text = body if isinstance(body, str) else json.dumps(body, allow_nan=False)
        data = text.encode()
        close = self.close_connection or self.unread or self.service.is_draining
        self.service.count_answer(self.path, status)
        self.connection.settimeout(self.service.limits.read_seconds)
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE if isinstance(body, str) else JSON_TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        if retry_after:
            self.send_header("Retry-After", str(retry_after))
        if status == HTTPStatus.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        if close:
            self.close_connection = True
            self.linger()

    def linger(self) -> None:
        """Let the client read the answer: closing on bytes it still sends would take it back."""
        with contextlib.suppress(OSError, ValueError):
            self.connection.shutdown(socket.SHUT_WR)
            self.reader.allow(SECONDS_TO_LINGER)
            while self.rfile.read1(65536):
                pass
