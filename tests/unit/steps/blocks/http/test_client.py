"""What the HTTP client does beyond the faults that the clients of services are tested with."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from nemotron_style.steps.blocks.http.client import Fault, HttpClient, run
from nemotron_style.steps.blocks.http.endpoint import read_address

ANSWER = b'HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 7\r\n\r\n{"a":1}'


@pytest.fixture
def served() -> Iterator[tuple[int, list[bytes]]]:
    """A port where everything gets the same answer, and what was asked there."""
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while request := connection.recv(65536):
                    asked.append(request)
                    connection.sendall(ANSWER)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)


def ask(url: str, *, times: int = 1) -> list[dict[str, int]]:
    client = HttpClient(read_address(url))
    try:
        return [run(client.request("GET", "/", timeout=120)) for _ in range(times)]
    finally:
        run(client.aclose())


def test_a_server_without_tls_is_told(served: tuple[int, list[bytes]]) -> None:
    with pytest.raises(Fault, match=r"tls: .*SSL"):
        ask(f"https://127.0.0.1:{served[0]}")


def test_a_name_that_nobody_has_is_unreachable() -> None:
    with pytest.raises(Fault, match="unreachable: "):
        ask("http://no-such-host.invalid:80")


def test_proxies_of_the_environment_and_cookies_are_not_used(
    served: tuple[int, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    port, asked = served
    assert ask(f"http://127.0.0.1:{port}", times=2) == [{"a": 1}] * 2
    assert len(asked) == 2
    assert not [request for request in asked if b"cookie" in request.lower()]
