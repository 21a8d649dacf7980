"""One question over HTTP and its answer, within a deadline that nothing outlasts.

Whatever goes wrong is a :class:`Fault` with a word for its kind; an answer is only what came
whole, in time, with status 200, as a JSON object. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from nemotron_style.steps.blocks.http.endpoint import Address
from nemotron_style.steps.blocks.http.error import shorten

MAX_ANSWER_BYTES = 64 * 2**20
PERMANENT_STATUSES = (400, 401, 403, 404, 405, 411, 413, 415, 422)


class Fault(Exception):
    """One try that brought no answer. ``permanent``: the same question would fail again."""

    def __init__(self, kind: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.permanent = kind, message, permanent
        self.retry_after: float | None = None


class Stale(Exception):
    """A kept connection that the other side had closed meanwhile."""


@dataclass
class HttpClient:
    """Asks ``address``; up to as many connections are kept as were ever in use at once."""

    address: Address
    token: str | None = field(default=None, repr=False)
    idle: list[http.client.HTTPConnection] = field(default_factory=list, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float
    ) -> dict[str, Any]:
        """The JSON object that answers. Raises ``Fault``."""
        data = None if body is None else json.dumps(body).encode()
        try:
            return self._request(method, path, data, timeout)
        except Stale:
            return self._request(method, path, data, timeout, fresh=True)

    def close(self) -> None:
        with self.lock:
            kept, self.idle = self.idle, []
        for connection in kept:
            connection.close()

    def _request(
        self, method: str, path: str, data: bytes | None, timeout: float, fresh: bool = False
    ) -> dict[str, Any]:
        connection, used = self._take(timeout, fresh)
        try:
            with Deadline.of(timeout) as limit:
                try:
                    response, text = self._talk(connection, limit, method, path, data)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    gone = isinstance(error, ConnectionError)  # RemoteDisconnected is one too
                    if used and gone and not limit.is_over:
                        raise Stale from None
                    raise explain(error, late=limit.is_over, timeout=timeout) from None
            if limit.is_over:  # what was shut half way may look like an end
                raise explain(TimeoutError(), late=True, timeout=timeout)
            answer = read_answer(response, text)
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            with self.lock:
                self.idle.append(connection)
        return answer

    def _take(self, timeout: float, fresh: bool) -> tuple[http.client.HTTPConnection, bool]:
        with self.lock:
            if self.idle and not fresh:
                return self.idle.pop(), True
        if self.address.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self.address.host, self.address.port, timeout=timeout, context=context
            ), False
        return http.client.HTTPConnection(
            self.address.host, self.address.port, timeout=timeout
        ), False

    def _talk(
        self,
        connection: http.client.HTTPConnection,
        limit: Deadline,
        method: str,
        path: str,
        data: bytes | None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if connection.sock is None:
            connection.connect()
        limit.watch(connection.sock)
        connection.request(method, self.address.path + path, body=data, headers=headers)
        response = connection.getresponse()
        text = response.read(MAX_ANSWER_BYTES + 1)
        if len(text) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
        if response.length:  # http.client does not say so where a size was asked for
            raise http.client.IncompleteRead(text, response.length)
        return response, text


@dataclass
class Deadline:
    """Shuts a socket once the time is over, whatever is being waited for.

    The socket's own timeout begins anew with every byte; this one does not.
    """

    socket: socket.socket | None = None
    is_over: bool = False

    @classmethod
    @contextlib.contextmanager
    def of(cls, seconds: float) -> Iterator[Deadline]:
        """One that is over after ``seconds``, or with the block."""
        limit = cls()
        timer = threading.Timer(seconds, limit.end)
        timer.daemon = True
        timer.start()
        try:
            yield limit
        finally:
            timer.cancel()

    def watch(self, connected: socket.socket) -> None:
        """The socket to shut. Raises ``TimeoutError`` when connecting took all the time."""
        self.socket = connected
        if self.is_over:
            raise TimeoutError

    def end(self) -> None:
        self.is_over = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


def explain(error: Exception, *, late: bool, timeout: float) -> Fault:
    """The fault behind an exception of the standard library."""
    if late or isinstance(error, TimeoutError):
        return Fault("timeout", f"no whole answer within {timeout:g} s")
    if isinstance(error, ConnectionRefusedError | socket.gaierror):
        return Fault("unreachable", str(error))
    if isinstance(error, http.client.IncompleteRead):
        return Fault("cut_short", f"the answer ended early: {error}")
    if isinstance(error, ssl.SSLError):
        return Fault("tls", str(error))
    if isinstance(error, OSError):
        return Fault("disconnected", str(error) or type(error).__name__)
    return Fault("malformed", f"no HTTP answer: {shorten(str(error))}")


def read_answer(response: http.client.HTTPResponse, text: bytes) -> dict[str, Any]:
    """The JSON object of a good answer. Raises ``Fault`` for every other."""
    if response.status != 200:
        raise read_refusal(response, text)
    try:
        told = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Fault("malformed", f"no JSON: {error}: {shorten(text[:60])}") from None
    if not isinstance(told, dict):
        raise Fault("malformed", f"no JSON object: {shorten(told)}")
    return told


def read_refusal(response: http.client.HTTPResponse, text: bytes) -> Fault:
    """What a status other than 200 means."""
    status = response.status
    kind = "redirect" if 300 <= status < 400 else f"http_{status}"
    permanent = status in PERMANENT_STATUSES
    fault = Fault(kind, _say(text) or response.reason or "no reason given", permanent=permanent)
    with contextlib.suppress(ValueError):
        seconds = float(response.headers.get("Retry-After", ""))
        fault.retry_after = max(seconds, 0.0) if seconds == seconds else None
    return fault


def _say(text: bytes) -> str:
    """The message of a service that speaks as ours does."""
    try:
        told = json.loads(text)
        return str(told["error"]["message"])[:500]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")


def as_list(told: Mapping[str, Any], key: str) -> list[Any]:
    """A list of the answer. Raises ``Fault`` when it is none."""
    value = told.get(key)
    if not isinstance(value, list):
        raise Fault("malformed", f"{key} is no list: {shorten(value)}")
    return value
