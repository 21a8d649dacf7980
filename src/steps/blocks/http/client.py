"""One request over HTTP and its answer, by httpx, within a deadline that nothing outlasts.

An answer is a JSON object that came whole, in time, with status 200. Everything else is a
:class:`Fault` with a word for its kind. Redirects are not followed, since a token would go with
them, and proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import ssl
import threading
from collections.abc import Coroutine, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NoReturn, TypeVar

import httpx

from nemotron_style.steps.blocks.http.endpoint import Address
from nemotron_style.steps.blocks.http.error import shorten

MAX_ANSWER_BYTES = 64 * 2**20
PERMANENT_STATUSES = (400, 401, 403, 404, 405, 411, 413, 415, 422)
KEEPALIVE_SECONDS = 4.0
"""Below the 5 s after which uvicorn (and so vLLM) closes a connection that nobody uses."""

Answer = TypeVar("Answer")

logging.getLogger("httpx").setLevel(logging.WARNING)  # else one line a request


class Fault(Exception):
    """One try that brought no answer. ``permanent``: the same request would fail again."""

    def __init__(
        self, kind: str, message: str, *, permanent: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.permanent = kind, message, permanent
        self.retry_after = retry_after


class HttpClient:
    """Asks ``address``, and keeps connections for later. To be used within :func:`run` alone."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        tls = (
            ssl.create_default_context()
            if address.scheme == "https"
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and made in no time
        )
        self._url = str(address)
        self._client = httpx.AsyncClient(
            headers=headers,
            verify=tls,
            trust_env=False,
            timeout=None,  # httpx's own begin anew with every byte
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def request(
        self, method: str, path: str, body: Any = None, *, timeout: float
    ) -> dict[str, Any]:
        """The JSON object that answers within ``timeout`` seconds. Raises ``Fault``."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content else {}
        stream = self._client.stream(method, self._url + path, content=content, headers=headers)
        try:
            async with asyncio.timeout(timeout), stream as response:
                return await _receive(response)
        except TimeoutError:
            raise Fault("timeout", f"no whole answer within {timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _explain(error) from None

    async def aclose(self) -> None:
        """Close the connections that were kept."""
        await self._client.aclose()


def run(work: Coroutine[Any, Any, Answer]) -> Answer:
    """What ``work`` returns; may be called from many threads at once.

    All of it runs in one event loop in a thread of its own, where connections can be shared.
    """
    with _starting:
        loop = _event_loop()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    finally:
        future.cancel()  # matters only where Ctrl-C ended the waiting


_starting = threading.Lock()  # else two threads may start a loop each


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="http", daemon=True).start()
    return loop


# A forked process has the loop, but not the thread that runs it.
os.register_at_fork(after_in_child=_event_loop.cache_clear)


async def _receive(response: httpx.Response) -> dict[str, Any]:
    """The answer behind a status line. Raises ``Fault``."""
    text = bytearray()
    try:
        async for part in response.aiter_raw():
            text += part
            if len(text) > MAX_ANSWER_BYTES:
                raise Fault("malformed", f"more than {MAX_ANSWER_BYTES} bytes")
    except httpx.RemoteProtocolError as error:
        raise Fault("cut_short", f"the answer ended early: {error}") from None
    try:
        return _parse(response, bytes(text))
    except Fault:
        # What may follow this answer would be taken for the next one.
        await response.extensions["network_stream"].aclose()
        raise


def _explain(error: Exception) -> Fault:
    """The fault behind an exception of httpx."""
    if isinstance(error, httpx.ConnectError):
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:  # httpx, httpcore, anyio, the system
            cause = inner
        return Fault("tls" if isinstance(cause, ssl.SSLError) else "unreachable", str(cause))
    message = str(error) or type(error).__name__
    if isinstance(error, httpx.NetworkError) or message.startswith("Server disconnected"):
        return Fault("disconnected", message)
    return Fault("malformed", f"no HTTP answer: {shorten(message)}")


def _parse(response: httpx.Response, text: bytes) -> dict[str, Any]:
    """The JSON object of an answer that came whole. Raises ``Fault`` for every other."""
    if response.status_code != 200:
        raise _read_error(response, text)
    try:
        answer = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Fault("malformed", f"no JSON: {error}: {shorten(text[:60])}") from None
    if not isinstance(answer, dict):
        raise Fault("malformed", f"no JSON object: {shorten(answer)}")
    return answer


def _read_error(response: httpx.Response, text: bytes) -> Fault:
    """What a status other than 200 means."""
    status = response.status_code
    try:
        message = str(json.loads(text)["error"]["message"])[:500]  # as our own services say it
    except (ValueError, RecursionError, KeyError, TypeError):
        message = ""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:  # absent, or a date
        seconds = float("nan")
    return Fault(
        "redirect" if 300 <= status < 400 else f"http_{status}",
        message or response.reason_phrase or "no reason given",
        permanent=status in PERMANENT_STATUSES,
        retry_after=max(seconds, 0.0) if seconds == seconds else None,
    )


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")


def as_list(answer: Mapping[str, Any], key: str) -> list[Any]:
    """A list of the answer. Raises ``Fault`` when it is none."""
    value = answer.get(key)
    if not isinstance(value, list):
        raise Fault("malformed", f"{key} is no list: {shorten(value)}")
    return value
