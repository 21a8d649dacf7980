"""A model as an HTTP service: routes of its own, ``GET /health`` and ``GET /metrics``.

It listens before the model is loaded, so that whoever waits for it sees that it is on its way
(503), and stops in the opposite order: nothing new is taken, what was taken is answered, then the
connections are closed. It listens on this machine alone unless it has a token to ask for.

Standard library only. A thread a connection is enough here: one model answers them all, and what
a thread does besides waiting for it is to parse a few kilobytes of JSON.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.http.endpoint import is_loopback
from nemotron_style.steps.blocks.http.error import HttpError
from nemotron_style.steps.blocks.serving.connection import Connection
from nemotron_style.steps.blocks.serving.dynamic_batcher import (
    SECONDS,
    Batcher,
    Batching,
    Closed,
    Failed,
    Full,
    Naming,
    Worker,
)
from nemotron_style.steps.blocks.serving.metrics_page import (
    Count,
    Gauge,
    Histogram,
    Metric,
    render,
)

HEALTH, METRICS = "/health", "/metrics"
LOADING, READY, DRAINING = "loading", "ready", "draining"
RETRY_SECONDS = {LOADING: 5, DRAINING: 1}
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: 67\r\n\r\n"
    b'{"error": {"type": "connections", "message": "too many connections"}}'
)
BUSY = BUSY.replace(b"67", str(len(BUSY.partition(b"\r\n\r\n")[2])).encode())


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and how long it may take."""

    body_bytes: int = 8 * 2**20
    connections: int = 512
    idle_seconds: float = 120.0
    read_seconds: float = 30.0
    answer_seconds: float = 600.0


@dataclass(frozen=True)
class Route:
    """What a path is asked with, and what answers: JSON, or a ``HttpError`` that is raised."""

    method: str
    answer: Callable[[Connection], Mapping[str, Any]]


class Listener(ThreadingHTTPServer):
    """The socket; knows its connections, so that they can be counted, waited for and ended."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, host: str, port: int, service: Service) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.service = service
        self.open: set[socket.socket] = set()
        self.changed = threading.Condition()
        super().__init__((host, port), Connection)

    def server_bind(self) -> None:
        """Without looking up a name for the address, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.changed:
            full = len(self.open) >= self.service.limits.connections
            self.open.add(request)
        if not full:
            return super().process_request(request, client_address)
        self.service.count_error("connections")
        request.settimeout(1.0)
        with contextlib.suppress(OSError):
            request.sendall(BUSY)
        return self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.changed:
            self.open.discard(request)
            self.changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away; what goes wrong inside is answered, not raised."""
        self.service.count_error("disconnected")

    def finish(self, seconds: float) -> int:
        """Read nothing more, let answers be sent; the number of connections that took too long."""
        with self.changed:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
            self.changed.wait_for(lambda: not self.open, timeout=seconds)
            return len(self.open)


class Service:
    """``listen``, then ``start`` with a model, and in the end ``drain``.

    A subclass brings its ``routes`` and says more in :meth:`facts` and :meth:`metrics`.
    """

    def __init__(
        self,
        naming: Naming,
        routes: Mapping[str, Route],
        *,
        limits: Limits | None = None,
        token: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.naming, self.routes = naming, routes
        self.limits, self.say = limits or Limits(), say
        self._token = token
        self.methods = {path: route.method for path, route in routes.items()}
        self.methods |= {HEALTH: "GET", METRICS: "GET"}
        self.state = LOADING
        self.batcher: Batcher | None = None
        self.listener: Listener | None = None
        prefix, result = naming.prefix, naming.result
        self.requests = Count(f"{prefix}_requests_total", "Answers sent, by path and status.")
        self.errors = Count(f"{prefix}_errors_total", f"Requests that got no {result}, by kind.")
        self.latency = Histogram(
            f"{prefix}_request_seconds", "Seconds from request to answer.", bounds=SECONDS
        )

    def facts(self) -> Mapping[str, Any]:
        """What ``/health`` says of the model to those who may use it."""
        return {}

    def metrics(self) -> list[Metric]:
        """What is counted besides requests, errors, latency and batches."""
        return []

    def write_error(self, refusal: HttpError) -> Mapping[str, Any]:
        """The body of an error."""
        return refusal.body

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Take the address; port 0 means any that is free. What was bound is given back.

        Raises ``ConfigError`` for an address that cannot be had, or that others can reach while
        there is no token.
        """
        if not is_loopback(host) and not self._token:
            what = "others can reach this address, and there is no token to ask them for"
            fix = "name the environment variable that holds one in token_env"
            raise ConfigError(Problem(key="host", what=what, got=repr(host), fix=fix))
        try:
            self.listener = Listener(host, port, self)
        except (OSError, OverflowError) as error:
            what = f"cannot listen at {host}, port {port}: {error}"
            raise ConfigError(Problem(key="port", what=what, fix="port=0 takes any")) from None
        thread = threading.Thread(
            target=self.listener.serve_forever, args=(0.05,), name="listener", daemon=True
        )
        thread.start()
        return str(self.listener.server_address[0]), int(self.listener.server_address[1])

    def start(self, worker: Worker, batching: Batching) -> None:
        """Answer from now on."""
        self.batcher = Batcher(worker, batching, self.naming, say=self.say)
        self.batcher.start()
        self.state = READY

    @property
    def is_draining(self) -> bool:
        return self.state == DRAINING

    @property
    def is_broken(self) -> bool:
        """Whether the model fails again and again."""
        return self.batcher is not None and self.batcher.desperate

    def drain(self, seconds: float) -> bool:
        """Stop: whoever was accepted is answered. False when that took longer than ``seconds``."""
        end = time.monotonic() + seconds
        self.state = DRAINING
        if self.listener is None:
            return True
        self.listener.shutdown()
        self.listener.server_close()
        answered = self.batcher is None or self.batcher.close(seconds)
        left = self.listener.finish(max(end - time.monotonic(), 0.1))
        return answered and not left

    def answer(self, connection: Connection, method: str) -> tuple[int, Mapping[str, Any] | str]:
        """Status and body for one request. Raises ``HttpError`` for all but 200 and 503."""
        path = connection.path.partition("?")[0]
        allowed = self.methods.get(path)
        if allowed is None:
            raise HttpError(404, "not_found", f"there are {', '.join(self.methods)}")
        if method != allowed:
            raise HttpError(405, "method", f"{path} is asked with {allowed}")
        known = self.check_token(connection.headers.get_all("Authorization") or [])
        if path == HEALTH:
            return self.tell_health(known)
        if not known:
            raise HttpError(401, "unauthorized", "Authorization: must be the bearer token")
        if path == METRICS:
            return 200, self.tell_metrics()
        return 200, self.routes[path].answer(connection)

    def check_token(self, headers: list[str]) -> bool:
        """Whether the right token came with it. Raises ``HttpError`` for a wrong one."""
        if self._token is None:
            return True
        if not headers:
            return False
        wanted = f"Bearer {self._token}".encode()
        if len(headers) != 1 or not hmac.compare_digest(headers[0].encode("latin-1"), wanted):
            raise HttpError(401, "unauthorized", "Authorization: not the right bearer token")
        return True

    def check_ready(self) -> Batcher:
        """What collects requests. Raises ``HttpError`` when nothing can be asked now."""
        if self.batcher is None or self.state != READY:
            raise self._unavailable()
        return self.batcher

    def ask(
        self, items: Sequence[Any], *, size: int, gone: Callable[[], bool] | None = None
    ) -> list[Any]:
        """What the model gives for the items of one request, as :meth:`Batcher.ask` has them.

        Raises ``HttpError`` when it gives nothing, and the model's ``InputError``.
        """
        batcher, timeout = self.check_ready(), self.limits.answer_seconds
        try:
            return batcher.ask(items, size=size, timeout=timeout, gone=gone)
        except Full as full:
            raise HttpError(429, "queue_full", str(full), retry_after=full.seconds) from None
        except Closed:
            raise self._unavailable() from None
        except TimeoutError as error:
            raise HttpError(504, "too_late", str(error), retry_after=5) from None
        except Failed as error:
            raise HttpError(500, "model", str(error)) from None

    def tell_health(self, known: bool) -> tuple[int, Mapping[str, Any]]:
        """503 until it is ready; the model is told to those who may use it."""
        state = "broken" if self.is_broken else self.state
        facts = self.facts() if known else {}
        return (200 if state == READY else 503), {"status": state, **facts}

    def tell_metrics(self) -> str:
        """Everything that is counted."""
        prefix, units = self.naming.prefix, self.naming.units
        ready = Gauge(
            f"{prefix}_ready", "1 when it answers.", read=lambda: float(self.state == READY)
        )
        metrics: list[Metric] = [self.requests, self.errors, *self.metrics(), self.latency, ready]
        if self.batcher:
            batcher = self.batcher
            waiting = Gauge(
                f"{prefix}_queue_{units}",
                f"{units.capitalize()} waiting.",
                read=lambda: batcher.queued,
            )
            metrics += [batcher.batches, batcher.sizes, batcher.durations, waiting]
        return render(metrics)

    def count_answer(self, path: str, status: int) -> None:
        known = path.partition("?")[0]
        self.requests.add(path=known if known in self.methods else "other", status=str(status))

    def count_error(self, kind: str) -> None:
        self.errors.add(kind=kind)

    def _unavailable(self) -> HttpError:
        seconds = RETRY_SECONDS.get(self.state, 1)
        return HttpError(503, self.state, f"the service is {self.state}", retry_after=seconds)
