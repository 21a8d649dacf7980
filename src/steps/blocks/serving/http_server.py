"""uvicorn in a thread of its own, with the bounds that it does not have by itself.

* A whole head must come within ``idle_seconds`` of the connection's begin, or of the answer before.
  uvicorn's own timer ends with the first byte, so a client could send one now and then.
* More than ``connections`` are turned away at once, not only when they ask for something.
* An answer reaches a client that is still sending (:class:`LingeringTransport`), and one that has
  said all and closed its writing half. uvicorn takes that for the client's end.
* What is no HTTP is refused in JSON, as everything else is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nemotron_style.steps.blocks.http.error import HttpError

SECONDS_TO_LINGER = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two probes of a client that has closed its writing half."""


class BackgroundServer(uvicorn.Server):
    """Answers for ``service``, an ASGI application with ``limits``, from the beginning."""

    def __init__(self, service: Any, listener: socket.socket) -> None:
        config = uvicorn.Config(
            service,
            http=BoundedProtocol,
            loop="asyncio",
            ws="none",
            interface="asgi3",
            lifespan="off",
            proxy_headers=False,
            timeout_keep_alive=service.limits.idle_seconds,
            headers=[("Server", "nemotron-style")],
            server_header=False,
            access_log=False,  # what is asked is nobody's business
            log_config=None,
            log_level="error",
        )
        super().__init__(config)
        self.is_listening = threading.Event()
        self.thread = threading.Thread(target=self.run, args=([listener],), daemon=True)
        self.thread.start()
        self.is_listening.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.is_listening.set()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self.server_state.connections)

    def stop_listening(self, deadlines: Iterable[asyncio.Timeout]) -> None:
        """Take no new connection; what has to come until ``deadlines`` has to be there now."""

        async def stop() -> None:
            for server in self.servers:
                server.close()
            for deadline in deadlines:
                deadline.reschedule(self.loop.time())

        if self.thread.is_alive():
            asyncio.run_coroutine_threadsafe(stop(), self.loop).result()

    def finish(self, seconds: float) -> bool:
        """Close connections as their answers are sent; False when that takes too long."""
        self.should_exit = True
        self.thread.join(seconds)
        return not self.thread.is_alive()


class LingeringTransport:
    """A transport that can close its writing half first, and drop what still arrives.

    To close a socket on bytes that nobody read resets the connection, and that takes back an answer
    which the client has not seen yet.
    """

    def __init__(self, transport: asyncio.Transport, protocol: BoundedProtocol) -> None:
        self._transport, self._protocol = transport, protocol
        self._is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close; where the body did not come whole, linger."""
        if self._protocol.conn.their_state is h11.SEND_BODY:
            self.linger()
        else:
            self._transport.close()

    def linger(self) -> None:
        """Let the client read its answer, for a while, and close."""
        if self.is_closing():
            return
        self._is_lingering = True
        self._transport.resume_reading()
        with contextlib.suppress(OSError):  # the client may have gone meanwhile
            self._transport.write_eof()
        loop, limits = self._protocol.loop, self._protocol.service.limits
        loop.call_later(SECONDS_TO_LINGER, self._transport.close)
        loop.call_later(limits.read_seconds, self._transport.abort)  # with what is still unsent


class BoundedProtocol(H11Protocol):
    """One connection of the service that is ``config.app``."""

    transport: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.service = config.app
        self._is_half_closed = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(LingeringTransport(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.service.limits.connections:
            self.connections.discard(self)
            self._refuse(HttpError(503, "connections", "too many connections", retry_after=1))
            return
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but the timer runs on: only a whole head ends it (``handle_events``)."""
        if not self.transport.is_closing():
            self.conn.receive_data(data)
            self.handle_events()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to keep the writing half open: where a whole request waits for its answer.

        A client that is gone ends its sending in the same way. What tells the two apart is that
        its system resets the connection when something is written to it.
        """
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return False
        self._is_half_closed = True
        self._plan_end()
        self._probe(FIRST_PAUSE)
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_half_closed:
            self._plan_end()

    def _plan_end(self) -> None:
        """Close after the last request that came before the client closed its half."""
        if self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = bool(self.conn.trailing_data[0])  # requests sent ahead

    def _probe(self, pause: float) -> None:
        """Write to a client that waits, again and again, so that a reset shows that it is gone.

        ``100 Continue`` may be sent to a client that did not ask for it, which discards it
        (RFC 9110, 15.2). HTTP/1.0 knows none of that: such a client is never probed.
        """
        cycle = self.cycle
        if self.transport.is_closing() or cycle.response_started:
            return
        if cycle.scope["http_version"] == "1.1":
            event = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(event))
            self.loop.call_later(pause, self._probe, min(2 * pause, LONGEST_PAUSE))

    def timeout_keep_alive_handler(self) -> None:
        if self.conn.trailing_data[0]:  # a part of a head
            self.service.count_error("slow_client")
        self.transport.abort()  # close() would wait for a client that does not read

    def send_400_response(self, msg: str) -> None:
        self.service.count_answer("", 400)
        self._refuse(HttpError(400, "bad_request", msg))

    def _refuse(self, error: HttpError) -> None:
        """Answer outside of any request, and close."""
        self._unset_keepalive_if_required()
        self.service.count_error(error.kind)
        body = json.dumps(self.service.write_error(error))
        head = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *([f"Retry-After: {error.retry_after}"] if error.retry_after else []),
        ]
        self.transport.write("\r\n".join([*head, "", body]).encode())
        self.transport.linger()
