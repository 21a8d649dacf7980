"""A model as an HTTP service: routes of its own, ``GET /health`` and ``GET /metrics``.

It listens before the model is loaded, so that clients see that it is on its way
(503), and stops in the opposite order: nothing new is taken, what was taken is answered, then the
connections are closed. It listens on this machine alone unless it has a token to ask for.

Requests are read and answered in the event loop of :mod:`http_server`, with Starlette's requests
and responses; the model works in the batcher's thread.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from nemotron_style.runtime.errors import ConfigError, Problem
from nemotron_style.steps.blocks.http.endpoint import is_loopback
from nemotron_style.steps.blocks.http.error import HttpError
from nemotron_style.steps.blocks.serving.config import RequestLimits
from nemotron_style.steps.blocks.serving.dynamic_batcher import (
    Batcher,
    Batching,
    Closed,
    Failed,
    Full,
    Naming,
)
from nemotron_style.steps.blocks.serving.http_server import BackgroundServer
from nemotron_style.steps.blocks.serving.metrics import CONTENT_TYPE, SECONDS, write_page

HEALTH, METRICS = "/health", "/metrics"
LOADING, READY, DRAINING = "loading", "ready", "draining"
RETRY_SECONDS = {LOADING: 5, DRAINING: 1}
SECONDS_TO_CLOSE = 0.5
"""That connections have to close, however little of the drain's time is left."""


@dataclass(frozen=True)
class Route:
    """What a path is asked with, and what answers: JSON, or an ``HttpError`` that is raised."""

    method: str
    answer: Callable[[Request], Awaitable[Mapping[str, Any]]]


class JsonResponse(JSONResponse):
    """ASCII alone: half a surrogate pair goes back as it came."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class Service:
    """``listen``, then ``start`` with a model, and in the end ``drain``; an ASGI application.

    A subclass brings its ``routes`` and says more in :meth:`facts`.
    """

    def __init__(
        self,
        naming: Naming,
        routes: Mapping[str, Route],
        limits: RequestLimits,
        *,
        token: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.naming, self.routes, self.limits, self.say = naming, routes, limits, say
        self._token = token
        self.methods = {path: route.method for path, route in routes.items()}
        self.methods |= {HEALTH: "GET", METRICS: "GET"}
        self.state = LOADING
        self.batcher: Batcher | None = None
        self.server: BackgroundServer | None = None
        self._deadlines: set[asyncio.Timeout] = set()
        prefix, self.registry = naming.prefix, CollectorRegistry()
        count = functools.partial(Counter, registry=self.registry)
        self.requests = count(
            f"{prefix}_requests_total", "Answers sent, by path and status.", ["path", "status"]
        )
        missing = f"Requests that got no {naming.result}, by kind."
        self.errors = count(f"{prefix}_errors_total", missing, ["kind"])
        self.latency = Histogram(
            f"{prefix}_request_seconds",
            "Seconds from request to answer.",
            buckets=SECONDS,
            registry=self.registry,
        )
        ready = Gauge(f"{prefix}_ready", "1 when it answers.", registry=self.registry)
        ready.set_function(lambda: float(self.state == READY))

    def facts(self) -> Mapping[str, Any]:
        """What ``/health`` says of the model to those who may use it."""
        return {}

    def write_error(self, error: HttpError) -> Mapping[str, Any]:
        """The body of an error."""
        return error.body

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Take the address, which is returned; port 0 means any that is free.

        Raises ``ConfigError`` for an address that cannot be had, or that others can reach while
        there is no token.
        """
        if not is_loopback(host) and not self._token:
            what = "others can reach this address, and there is no token to ask them for"
            fix = "name the environment variable that holds one in token_env"
            raise ConfigError(Problem(key="host", what=what, got=repr(host), fix=fix))
        is_v6 = ":" in host
        try:
            listener = socket.create_server(
                (host, port),
                family=socket.AF_INET6 if is_v6 else socket.AF_INET,
                backlog=1024,
                dualstack_ipv6=is_v6 and socket.has_dualstack_ipv6(),
            )
        except (OSError, OverflowError) as error:
            what = f"cannot listen at {host}, port {port}: {error}"
            raise ConfigError(Problem(key="port", what=what, fix="port=0 takes any")) from None
        taken_host, taken_port, *_ = listener.getsockname()
        self.server = BackgroundServer(self, listener)
        return taken_host, taken_port

    def start(
        self,
        batching: Batching,
        *,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        check: Callable[[Any, Any], Any],
    ) -> None:
        """Answer from now on; ``work`` and ``check`` are those of :class:`Batcher`."""
        self.batcher = Batcher(
            batching, self.naming, self.registry, work=work, check=check, say=self.say
        )
        self.state = READY

    @property
    def is_broken(self) -> bool:
        """Whether the model fails again and again."""
        return self.batcher is not None and self.batcher.is_unhealthy

    def drain(self, seconds: float) -> bool:
        """Stop, and answer what was accepted. False when that took longer than ``seconds``."""
        end = time.monotonic() + seconds
        self.state = DRAINING
        if self.server is None:
            return True
        self.server.stop_listening(self._deadlines)
        answered = self.batcher is None or self.batcher.close(seconds)
        return self.server.finish(max(end - time.monotonic(), SECONDS_TO_CLOSE)) and answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is, and count it."""
        request, begun = Request(scope, receive), time.monotonic()
        try:
            response = await self._answer(request)
        except HttpError as error:
            response = self._answer_error(error)
        except ClientDisconnect:
            return self.count_error("disconnected")
        except Exception:
            logging.getLogger(__name__).exception("a request was not answered")
            response = self._answer_error(HttpError(500, "internal", "the service failed"))
        response.headers["Cache-Control"] = "no-store"
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        is_read = getattr(request.state, "body_is_read", not has_body)
        if self.state == DRAINING or not is_read:
            response.headers["Connection"] = "close"
        self.count_answer(scope["path"], response.status_code)
        if request.method == "POST":
            self.latency.observe(time.monotonic() - begun)
        return await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        """Raises ``HttpError`` for every other status than 200 and 503."""
        path, method = request.scope["path"], request.method
        if path.startswith(("http://", "https://")):  # the form in which a proxy is asked
            path = urlsplit(path).path
        if method == "HEAD":  # as GET; the server leaves out the body
            method = "GET"
        if method not in ("GET", "POST"):
            raise HttpError(501, "bad_request", f"Unsupported method ({method[:20]!r})")
        if path not in self.methods:
            raise HttpError(404, "not_found", f"there are {', '.join(self.methods)}")
        if method != self.methods[path]:
            raise HttpError(405, "method", f"{path} is asked with {self.methods[path]}")
        known = self._check_token(request.headers.getlist("authorization"))
        if path == HEALTH:  # 503 until it is ready; probes need no token to see that
            state = "broken" if self.is_broken else self.state
            facts = self.facts() if known else {}
            return JsonResponse({"status": state, **facts}, 200 if state == READY else 503)
        if not known:
            raise HttpError(401, "unauthorized", "Authorization: must be the bearer token")
        if path == METRICS:
            return Response(write_page(self.registry), headers={"Content-Type": CONTENT_TYPE})
        return JsonResponse(await self.routes[path].answer(request))

    def _answer_error(self, error: HttpError) -> Response:
        self.count_error(error.kind)
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JsonResponse(self.write_error(error), error.status, headers)

    def _check_token(self, headers: Sequence[str]) -> bool:
        """Whether the right token came with it. Raises ``HttpError`` for a wrong one."""
        if self._token is None or not headers:
            return self._token is None
        wanted = f"Bearer {self._token}".encode()
        if len(headers) != 1 or not hmac.compare_digest(headers[0].encode("latin-1"), wanted):
            raise HttpError(401, "unauthorized", "Authorization: not the right bearer token")
        return True

    async def read_body(self, request: Request) -> bytes:
        """The whole body. Raises ``HttpError``."""
        headers, seconds = request.headers, self.limits.read_seconds
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HttpError(415, "not_json", "Content-Type: must be application/json")
        if "content-length" not in headers or "transfer-encoding" in headers:
            raise HttpError(411, "no_length", "body: say its length in Content-Length")
        length, most = int(headers["content-length"]), self.limits.body_bytes  # h11 has checked it
        if length > most:
            raise HttpError(413, "too_large", f"body: {length} bytes; it may have {most}")
        try:
            async with asyncio.timeout(seconds) as deadline:
                self._deadlines.add(deadline)
                body = await request.body()
        except TimeoutError:
            if self.state == DRAINING:
                raise self._unavailable() from None
            message = f"body: not received whole within {seconds:g} s"
            raise HttpError(408, "slow_client", message) from None
        finally:
            self._deadlines.discard(deadline)
        request.state.body_is_read = True
        return body

    def check_ready(self) -> Batcher:
        """What collects requests. Raises ``HttpError`` when nothing can be asked now."""
        if self.batcher is None or self.state != READY:
            raise self._unavailable()
        return self.batcher

    async def ask(self, request: Request, items: Sequence[Any], *, size: int) -> list[Any]:
        """What the model gives for the items of one request of ``size`` units.

        Raises ``HttpError`` when it gives nothing, the model's ``InputError``, and
        ``ClientDisconnect``. A request that is given up before its batch begins is not worked on.
        """
        try:
            submitted = self.check_ready().submit(items, size=size)
        except Full as full:
            raise HttpError(429, "queue_full", str(full), retry_after=full.seconds) from None
        except Closed:
            raise self._unavailable() from None
        results = asyncio.wrap_future(submitted)
        # The body was read, so what comes next from this client can only be its end.
        gone, seconds = asyncio.ensure_future(request.receive()), self.limits.answer_seconds
        try:
            await asyncio.wait({results, gone}, timeout=seconds, return_when="FIRST_COMPLETED")
            if results.done():
                return results.result()
            if gone.done():
                raise ClientDisconnect
            message = f"not {self.naming.done} within {seconds:g} s"
            raise HttpError(504, "too_late", message, retry_after=5)
        except Failed as error:
            raise HttpError(500, "model", str(error)) from None
        finally:
            submitted.cancel()  # at once: by way of `results` it would come after the answer
            results.cancel()
            gone.cancel()

    def count_answer(self, path: str, status: int) -> None:
        known = path if path in self.methods else "other"
        self.requests.labels(path=known, status=str(status)).inc()

    def count_error(self, kind: str) -> None:
        self.errors.labels(kind=kind).inc()

    def _unavailable(self) -> HttpError:
        seconds = RETRY_SECONDS.get(self.state, 1)
        return HttpError(503, self.state, f"the service is {self.state}", retry_after=seconds)
