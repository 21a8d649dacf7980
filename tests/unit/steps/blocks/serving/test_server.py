"""The scoring service with a model that is a formula: what it answers, refuses, counts, and how it
ends."""

from __future__ import annotations

import http.client
import json
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from nemotron_style.runtime.errors import ConfigError, InputError
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.reward.client import RewardClient, RewardUnavailable
from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.blocks.serving import http_server
from nemotron_style.steps.blocks.serving.config import ScoreLimits as Limits
from nemotron_style.steps.blocks.serving.dynamic_batcher import FAILURES_UNTIL_UNHEALTHY, Batching
from nemotron_style.steps.blocks.serving.metrics import total, write_page
from nemotron_style.steps.blocks.serving.score_api import ScoreService as Service
from waiting import until

MODEL = "sha256:abcd"
QUICK = RetryPolicy(tries=30, timeout=120, first_pause=0.005, longest_pause=0.05)


def talk(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]


def right(text: str) -> float:
    return float(sum(map(ord, text)))


@dataclass
class Formula:
    """A scorer whose scores can be told beforehand; closed, ``gate`` holds it."""

    outputs: tuple[str, ...] = ("helpfulness", "verbosity")
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    instead: Callable[[Sequence[Any]], Any] | None = None

    def score(self, conversations: Sequence[Any]) -> Any:
        self.batches.append(len(conversations))
        self.entered.set()
        assert self.gate.wait(60)
        if self.instead:
            return self.instead(conversations)
        texts = [conversation[-1]["content"] for conversation in conversations]
        if "too long" in texts:
            raise InputError("the conversation is longer than 16 tokens")
        if "poison" in texts:
            raise RuntimeError("the kernel failed")
        return [self.one(text) for text in texts]

    def one(self, text: str) -> RewardScore:
        score = float("nan") if text == "nan" else right(text)
        return RewardScore(score, {"helpfulness": right(text), "verbosity": float(len(text))})


@dataclass
class World:
    service: Service
    scorer: Formula
    port: int
    said: list[str]

    def client(self, **how: Any) -> RewardClient:
        return RewardClient(f"http://127.0.0.1:{self.port}", **{"retry_policy": QUICK, **how})

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        told = {"Content-Type": "application/json"} if data is not None else {}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body=data, headers=told)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        is_json = text and "json" in response.headers.get_content_type()
        return response.status, json.loads(text) if is_json else text, response.headers

    def score(self, *texts: str, **headers: str) -> tuple[int, Any]:
        return self.ask("POST", "/v1/score", {"conversations": list(map(talk, texts))}, **headers)[
            :2
        ]

    def send(self, raw: bytes) -> bytes:
        """Whatever bytes, and everything that comes back until the end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(raw)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer


@contextmanager
def serving(
    *, limits: Limits | None = None, token: str | None = None, ready: bool = True, **batching: Any
) -> Iterator[World]:
    said: list[str] = []
    service = Service(MODEL, limits=limits, token=token, say=said.append)
    scorer = Formula()
    scorer.gate.set()
    _, port = service.listen("127.0.0.1", 0)
    if ready:
        how = Batching(**{"most": 64, "seconds": 0.002, "queued": 4096, **batching})
        service.serve(scorer.score, scorer.outputs, how)
    try:
        yield World(service, scorer, port, said)
    finally:
        scorer.gate.set()
        service.drain(120)


@pytest.fixture
def world() -> Iterator[World]:
    with serving() as made:
        yield made


# What it answers.


def test_scores_come_in_the_order_of_the_request_with_their_ids(world: World) -> None:
    body = {"conversations": [talk("b"), talk("a")], "ids": ["x", "y"]}
    status, told, headers = world.ask("POST", "/v1/score", body)
    assert status == 200
    assert told["model"] == MODEL
    assert [(one["id"], one["score"]) for one in told["results"]] == [("x", 98.0), ("y", 97.0)]
    assert told["results"][0]["attributes"] == {"helpfulness": 98.0, "verbosity": 1.0}
    assert headers["Cache-Control"] == "no-store"
    status, told = world.score("a")
    assert "id" not in told["results"][0]


def test_health_says_what_serves(world: World) -> None:
    status, told, _ = world.ask("GET", "/health")
    assert status == 200
    assert told == {
        "status": "ready",
        "model": MODEL,
        "max_conversations": 256,
        "outputs": ["helpfulness", "verbosity"],
    }


def test_while_the_model_loads_it_says_so() -> None:
    with serving(ready=False) as world:
        status, told, _ = world.ask("GET", "/health")
        assert (status, told["status"]) == (503, "loading")
        body = {"conversations": [talk("a")]}
        status, told, headers = world.ask("POST", "/v1/score", body)
        assert (status, told["error"]["type"], headers["Retry-After"]) == (503, "loading", "5")


def test_200_clients_at_once_get_their_own_scores(world: World) -> None:
    """Each sends three requests of its own over a connection of its own, all at the same time."""
    start = threading.Barrier(200)

    def ask(number: int) -> list[float]:
        with world.client(at_once=1, batch=2) as reward:
            start.wait()
            texts = [f"client {number} text {index}" for index in range(6)]
            scores = reward.score([talk(text) for text in texts])
            assert [scored.score for scored in scores] == [right(text) for text in texts]
            return [scored.score for scored in scores]

    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert sum(map(len, answers)) == 1200
    assert total(world.service.conversations) == 1200
    assert total(world.service.requests, path="/v1/score", status="200") == 600
    assert sum(world.scorer.batches) == 1200
    assert len(world.scorer.batches) < 600
    assert not total(world.service.errors)


# Batching.


def test_requests_that_wait_together_are_scored_together(world: World) -> None:
    world.scorer.gate.clear()
    with ThreadPoolExecutor(50) as pool:
        first = pool.submit(world.score, "first")
        assert world.scorer.entered.wait(120)
        rest = [pool.submit(world.score, f"text {n}", "and more") for n in range(49)]
        until(lambda: world.service.batcher.queued == 98)
        world.scorer.gate.set()
        answers = [future.result() for future in rest]
        assert first.result()[1]["results"][0]["score"] == right("first")
    for number, (status, told) in enumerate(answers):
        assert status == 200
        scores = [one["score"] for one in told["results"]]
        assert scores == [right(f"text {number}"), right("and more")]
    assert world.scorer.batches == [1, 64, 34]


def test_a_request_is_never_split_even_one_larger_than_a_batch() -> None:
    with serving(most=4, seconds=0) as world:
        assert world.score(*map(str, range(9)))[0] == 200
        assert world.scorer.batches == [9]


def test_an_open_batch_is_closed_when_it_is_full_and_not_later() -> None:
    with serving(most=4, seconds=3600) as world, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(world.score, "abcd"))
        assert [status for status, _ in answers] == [200] * 4
        assert world.scorer.batches == [4]


def test_a_full_queue_says_when_to_ask_again() -> None:
    with serving(queued=3) as world:
        world.scorer.gate.clear()
        with ThreadPoolExecutor(4) as pool:
            held = [pool.submit(world.score, "held")]
            assert world.scorer.entered.wait(120)
            held += [pool.submit(world.score, "a", "b")]
            until(lambda: world.service.batcher.queued == 2)
            body = {"conversations": [talk("c"), talk("d")]}
            status, told, headers = world.ask("POST", "/v1/score", body)
            assert (status, told["error"]["type"]) == (429, "queue_full")
            assert 1 <= int(headers["Retry-After"]) <= 60
            world.scorer.gate.set()
            assert [future.result()[0] for future in held] == [200, 200]
        assert total(world.service.errors, kind="queue_full") == 1


def test_an_answer_that_takes_too_long_is_given_up_and_not_scored_in_vain() -> None:
    with serving() as world, ThreadPoolExecutor(1) as pool:
        world.scorer.gate.clear()
        held = pool.submit(world.score, "a")
        assert world.scorer.entered.wait(120)
        world.service.limits, usual = Limits(answer_seconds=0.1), world.service.limits
        assert world.score("b")[0] == 504
        world.service.limits = usual
        world.scorer.gate.set()
        assert held.result()[0] == 200
        until(lambda: world.service.batcher.queued == 0)
        assert world.score("c")[0] == 200
        assert world.scorer.batches == [1, 1]


# What the model does wrong.


@pytest.mark.parametrize(
    "instead",
    [
        lambda given: [],
        lambda given: [RewardScore(1.0, {"helpfulness": 1.0, "verbosity": 1.0})] * (len(given) + 1),
        lambda given: [RewardScore(1.0, {"helpfulness": 1.0})] * len(given),
        lambda given: (
            [RewardScore(1.0, {"helpfulness": float("inf"), "verbosity": 1.0})] * len(given)
        ),
        lambda given: [RewardScore("1.0", {"helpfulness": 1.0, "verbosity": 1.0})] * len(given),  # type: ignore[arg-type]
        lambda given: [None] * len(given),
        lambda given: None,
        lambda given: 1 / 0,
    ],
    ids=["none", "more", "attribute missing", "infinite", "text", "null", "nothing", "raises"],
)
def test_whatever_is_no_score_is_a_500_and_never_a_number(
    world: World, instead: Callable[[Any], Any]
) -> None:
    world.scorer.instead = instead
    status, told = world.score("a")
    assert (status, told) == (
        500,
        {"error": {"type": "model", "message": "the model gave no usable score"}},
    )
    assert any("was not scored" in line for line in world.said)
    world.scorer.instead = None
    assert world.score("a")[0] == 200


@pytest.mark.parametrize(
    ("text", "status"), [("nan", 500), ("poison", 500), ("too long", 422)], ids=str
)
def test_only_the_culprit_of_a_batch_fails(world: World, text: str, status: int) -> None:
    world.scorer.gate.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(world.score, "first")
        assert world.scorer.entered.wait(120)
        bad = pool.submit(world.score, "fine", text)
        good = [pool.submit(world.score, f"{n}") for n in range(4)]
        until(lambda: world.service.batcher.queued == 6)
        world.scorer.gate.set()
        got, told = bad.result()
        assert got == status
        assert set(told) == {"error"}
        for number, future in enumerate(good):
            assert future.result()[1]["results"][0]["score"] == right(str(number))
        assert first.result()[0] == 200


def test_a_model_that_only_fails_is_given_up(world: World) -> None:
    world.scorer.instead = lambda given: 1 / 0
    for _ in range(FAILURES_UNTIL_UNHEALTHY):
        assert not world.service.is_broken
        assert world.score("a")[0] == 500
    assert world.service.is_broken
    status, told, _ = world.ask("GET", "/health")
    assert (status, told["status"]) == (503, "broken")


def test_the_client_turns_none_of_it_into_a_score(world: World) -> None:
    patience = RetryPolicy(tries=2, timeout=120, first_pause=0.001)
    with world.client(retry_policy=patience, batch=1) as reward:
        with pytest.raises(RewardUnavailable, match="no usable score"):
            reward.score([talk("a"), talk("nan")])
        with pytest.raises(RewardUnavailable, match="longer than 16 tokens") as caught:
            reward.score([talk("too long")])
    assert caught.value.permanent


# What it refuses.


BAD_BODIES: list[tuple[bytes | Any, int, str]] = [
    (b"", 400, "not JSON"),
    (b"{", 400, "line 1, column 2"),
    (b'{"conversations": [NaN]}', 400, "NaN is no JSON value"),
    (b"\xff", 400, "not UTF-8 at byte 0"),
    (b"[" * 100_000, 400, "not JSON"),
    (b'{"conversations": ' + b"9" * 5000 + b"}", 400, "not JSON"),
    ([], 422, "body: must be an object"),
    ({}, 422, "conversations: must be a list"),
    ({"conversations": []}, 422, "conversations: must be a list of at least one"),
    ({"conversations": "hello"}, 422, "conversations: must be a list"),
    ({"conversations": [[]]}, 422, "conversations[0]: must be a list of at least one message"),
    ({"conversations": [talk("a")], "model": "x"}, 422, "'model': is not a field"),
    ({"conversations": [talk("a"), [1]]}, 422, "conversations[1][0]: must have exactly"),
    ({"conversations": [[1, 2, 3]]}, 422, "conversations[0][0]: must have exactly"),
    (
        {"conversations": [[{"role": "judge", "content": ""}]]},
        422,
        "conversations[0][0].role: must be one of system, user, assistant, got 'judge'",
    ),
    (
        {"conversations": [[{"role": "assistant", "content": [101, 2009]}]]},
        422,
        "conversations[0][0].content: must be text, got [101, 2009]",
    ),
    (
        {"conversations": [[{"role": "assistant", "content": "\ud800"}]]},
        422,
        "half a surrogate pair",
    ),
    ({"conversations": [talk("a")[:1]]}, 422, "conversations[0]: must end with the assistant"),
    ({"conversations": [talk("a")], "ids": []}, 422, "ids: must be a list of 1"),
    ({"conversations": [talk("a")], "ids": [7]}, 422, "ids[0]: must be text"),
    ({"conversations": [talk("a")] * 257}, 413, "257 of them; one request may hold 256"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD_BODIES)
def test_a_bad_body_is_refused_in_one_line_that_names_the_place(
    world: World, body: Any, status: int, message: str
) -> None:
    got, told, _ = world.ask("POST", "/v1/score", body)
    assert got == status
    assert message in told["error"]["message"]
    assert "\n" not in told["error"]["message"]
    assert world.scorer.batches == []
    assert world.score("a")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/scores", 404),
        ("GET", "/v1/score", 405),
        ("POST", "/health", 405),
        ("DELETE", "/v1/score", 501),
        ("OPTIONS", "/v1/score", 501),
    ],
)
def test_other_paths_and_methods_are_refused(
    world: World, method: str, path: str, status: int
) -> None:
    body = b"{}" if method == "POST" else None
    got, told, _ = world.ask(method, path, body)
    assert got == status
    assert told["error"]["message"]


def test_a_form_of_a_browser_is_refused(world: World) -> None:
    body = json.dumps({"conversations": [talk("a")]}).encode()
    status, told, _ = world.ask("POST", "/v1/score", body, Content_Type="text/plain")
    assert (status, told["error"]["message"]) == (415, "Content-Type: must be application/json")


def test_a_body_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with serving(limits=Limits(body_bytes=2000)) as world:
        status, told = world.score("a" * 2000)
        assert status == 413
        assert "it may have 2000" in told["error"]["message"]
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        for length in (b"99999999999999999999", b"2001"):
            assert b" 413 " in world.send(head + b"Content-Length: " + length + b"\r\n\r\n")
        assert world.score("a")[0] == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"", b"411"),
        (b"Transfer-Encoding: chunked\r\n", b"411"),
        (b"Content-Length: -1\r\n", b"400"),
        (b"Content-Length: 1e3\r\n", b"400"),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", b"400"),
    ],
)
def test_a_body_without_a_length_is_refused(world: World, header: bytes, status: bytes) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\n"
    answer = world.send(head + header + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("raw", [b"\r\n\r\n", b"NONSENSE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_does_no_harm(world: World, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=120) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert world.score("a")[0] == 200


def request_of(text: str, version: str = "1.1") -> bytes:
    """A whole request to score ``text``, as bytes."""
    body = json.dumps({"conversations": [talk(text)]}).encode()
    head = f"POST /v1/score HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_scores(answer: bytes) -> list[float]:
    """The scores of every answer in ``answer``; interim answers (1xx) hold none."""
    found = re.findall(rb'\{"model".*?\]\}', answer)
    return [json.loads(one)["results"][0]["score"] for one in found]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_has_closed_its_writing_half_gets_its_answer(version: str) -> None:
    """It said all it has to say and waits, while others are served before it."""
    with serving() as world, ThreadPoolExecutor(2) as pool:
        world.scorer.gate.clear()
        first = pool.submit(world.score, "first")
        assert world.scorer.entered.wait(120)
        with socket.create_connection(("127.0.0.1", world.port), timeout=120) as waiting:
            waiting.sendall(request_of("half", version))
            waiting.shutdown(socket.SHUT_WR)
            until(lambda: world.service.batcher.queued == 1)
            threading.Event().wait(0.3)  # some probes
            assert world.service.batcher.queued == 1
            world.scorer.gate.set()
            answer = b""
            while part := waiting.recv(65536):
                answer += part
        assert first.result()[0] == 200
    assert b"HTTP/1.1 200 OK" in answer
    assert (b"100 Continue" in answer) == (version == "1.1")
    assert read_scores(answer) == [right("half")]
    assert not total(world.service.errors)


def test_requests_sent_ahead_of_a_half_close_are_all_answered(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), timeout=120) as waiting:
        waiting.sendall(request_of("a") + request_of("b") + b"POST /v1/sc")
        waiting.shutdown(socket.SHUT_WR)
        answer = b""
        while part := waiting.recv(65536):
            answer += part
    assert read_scores(answer) == [right("a"), right("b")]


@pytest.mark.parametrize("end", ["closed", "reset", "closed after its half"])
def test_a_client_that_is_gone_is_dropped_from_the_queue(end: str) -> None:
    with serving() as world, ThreadPoolExecutor(2) as pool:
        world.scorer.gate.clear()
        held = pool.submit(world.score, "first")
        assert world.scorer.entered.wait(120)
        leaving = socket.create_connection(("127.0.0.1", world.port), timeout=120)
        leaving.sendall(request_of("gone"))
        until(lambda: world.service.batcher.queued == 1)
        if end == "reset":
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if end == "closed after its half":
            leaving.shutdown(socket.SHUT_WR)
            assert b"100 Continue" in leaving.recv(100)
        leaving.close()
        until(lambda: total(world.service.errors, kind="disconnected") == 1)
        world.scorer.gate.set()
        assert held.result()[0] == 200
        until(lambda: world.service.batcher.queued == 0)
        assert world.score("next")[0] == 200
    assert world.scorer.batches == [1, 1]  # nothing was scored for it


def test_slow_clients_are_let_go() -> None:
    with serving(limits=Limits(idle_seconds=0.2)) as world:
        assert world.send(b"") == b""
        assert world.send(b"POST /v1/sc") == b""
    with serving(limits=Limits(read_seconds=0.2)) as world:
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = world.send(head + b"Content-Length: 50\r\n\r\n{")
        assert b" 408 " in answer
        assert b"not received whole within 0.2 s" in answer
        until(lambda: not world.service.server.connections)
        assert total(world.service.errors, kind="slow_client") >= 1


def test_a_client_that_drips_is_let_go_too() -> None:
    with (
        serving(limits=Limits(read_seconds=0.3)) as world,
        socket.create_connection(("127.0.0.1", world.port), timeout=120) as connection,
    ):
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode())
        while not select.select([connection], [], [], 0.02)[0]:
            connection.sendall(b" ")
        assert b" 408 " in connection.recv(4096)


def test_who_waits_for_an_answer_is_not_idle() -> None:
    with serving(limits=Limits(idle_seconds=1)) as world, ThreadPoolExecutor(1) as pool:
        world.scorer.gate.clear()
        held = pool.submit(world.score, "a")
        assert world.scorer.entered.wait(120)
        threading.Event().wait(1.3)
        world.scorer.gate.set()
        assert held.result()[0] == 200


def test_a_head_that_drips_is_let_go_too() -> None:
    with (
        serving(limits=Limits(idle_seconds=0.3)) as world,
        socket.create_connection(("127.0.0.1", world.port), timeout=120) as connection,
    ):
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")

        def drip() -> None:
            for number in range(6000):
                connection.sendall(f"X-{number}: 1\r\n".encode())
                threading.Event().wait(0.02)

        with pytest.raises(ConnectionError):
            drip()
        assert total(world.service.errors, kind="slow_client") == 1
        assert world.score("a")[0] == 200


def test_a_client_that_is_refused_while_it_sends_reads_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_server, "SECONDS_TO_LINGER", 60.0)
    with (
        serving(limits=Limits(body_bytes=2000)) as world,
        socket.create_connection(("127.0.0.1", world.port), timeout=120) as connection,
    ):
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 3000000\r\n\r\n".encode())
        for _ in range(3):
            connection.sendall(b" " * 1_000_000)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        assert b" 413 " in answer
        assert b"connection: close" in answer.lower()


def test_what_goes_wrong_inside_is_a_500(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.service, "facts", lambda: 1 / 0)
    status, told, _ = world.ask("GET", "/health")
    assert (status, told["error"]["type"]) == (500, "internal")
    assert total(world.service.errors, kind="internal") == 1


def test_too_many_connections_are_turned_away() -> None:
    with serving(limits=Limits(connections=2)) as world:
        held = [socket.create_connection(("127.0.0.1", world.port), timeout=120) for _ in range(2)]
        until(lambda: world.service.server.connections == 2)
        answer = world.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["type"] == "connections"
        assert f"Content-Length: {len(body)}".encode() in head
        for one in held:
            one.close()
        until(lambda: not world.service.server.connections)
        assert world.score("a")[0] == 200


# The token.


def test_a_service_with_a_token_answers_only_to_it() -> None:
    with serving(token="open-sesame") as world:
        for headers in (
            {},
            {"Authorization": "Bearer open-sesam"},
            {"Authorization": "Basic open-sesame"},
            {"Authorization": "Bearer open-sesamé".encode().decode("latin-1")},
        ):
            status, told = world.score("a", **headers)
            assert (status, told["error"]["type"]) == (401, "unauthorized")
            assert world.ask("GET", "/metrics", **headers)[0] == 401
        status, told, headers = world.ask("GET", "/health", Authorization="Bearer x")
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert world.ask("GET", "/health")[1] == {"status": "ready"}
        assert world.score("a", Authorization="Bearer open-sesame")[0] == 200
        with world.client(token="open-sesame") as reward:
            assert reward.score([talk("a")])[0].score == 97.0
        for token in (None, "wrong"):
            with (
                world.client(token=token) as reward,
                pytest.raises(RewardUnavailable, match="refused the token"),
            ):
                reward.wait_ready(60)
        assert world.scorer.batches == [1, 1]
        assert "open-sesame" not in str(vars(world.service)).replace("'_token': 'open-sesame'", "")
        assert not [line for line in world.said if "sesame" in line]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    service = Service(MODEL)
    with pytest.raises(ConfigError, match="there is no token to ask them for"):
        service.listen(host, 0)
    assert service.server is None


def test_a_port_that_is_taken_is_told(world: World) -> None:
    with pytest.raises(ConfigError, match=f"port {world.port}: .*in use"):
        Service(MODEL).listen("127.0.0.1", world.port)


# How it ends.


def test_a_drain_loses_no_request_that_was_accepted(world: World) -> None:
    world.scorer.gate.clear()
    with ThreadPoolExecutor(64) as pool:
        first = pool.submit(world.score, "first")
        assert world.scorer.entered.wait(120)
        rest = [pool.submit(world.score, f"text {number}") for number in range(60)]
        until(lambda: world.service.batcher.queued == 60)
        draining = pool.submit(world.service.drain, 120)
        until(lambda: world.service.batcher.closed)
        with pytest.raises(OSError, match="refused"):
            world.score("new")
        world.scorer.gate.set()
        assert draining.result() is True
        assert first.result()[0] == 200
        for number, future in enumerate(rest):
            status, told = future.result()
            assert (status, told["results"][0]["score"]) == (200, right(f"text {number}"))
    assert total(world.service.conversations) == 61
    assert not world.service.server.connections


def test_a_drain_under_load_loses_nothing_that_was_accepted() -> None:
    """Clients keep asking while it ends: each request gets its scores, a 503 or no connection."""
    with serving() as world:
        answered: list[bool] = []

        def ask(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", world.port, timeout=120)
            body = json.dumps({"conversations": [talk(f"{number}")]})
            while True:
                connection.request("POST", "/v1/score", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                told = json.loads(response.read())
                if response.status != 200:
                    assert (response.status, told["error"]["type"]) == (503, "draining")
                    return
                assert told["results"][0]["score"] == right(f"{number}")
                answered.append(True)
                if response.will_close:
                    return

        def ask_until_the_end(number: int) -> None:
            try:
                ask(number)
            except (ConnectionError, http.client.RemoteDisconnected):
                return

        with ThreadPoolExecutor(32) as pool:
            asking = [pool.submit(ask_until_the_end, number) for number in range(32)]
            until(lambda: len(answered) > 200)
            assert world.service.drain(120) is True
            for future in asking:
                future.result()
        assert len(answered) == total(world.service.conversations) == sum(world.scorer.batches)


def test_a_drain_does_not_wait_for_a_body_that_is_still_sent() -> None:
    with (
        serving(limits=Limits(read_seconds=3600)) as world,
        socket.create_connection(("127.0.0.1", world.port), timeout=120) as connection,
    ):
        head = "POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 50\r\n\r\n{{".encode())
        until(lambda: bool(world.service._deadlines))
        with ThreadPoolExecutor(1) as pool:
            draining = pool.submit(world.service.drain, 120)
            answer = b""
            while part := connection.recv(65536):
                answer += part
            connection.close()
            assert draining.result() is True
        assert b" 503 " in answer
        assert b'"draining"' in answer


def test_a_drain_that_takes_too_long_says_so(world: World) -> None:
    world.scorer.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(world.score, "held")
        assert world.scorer.entered.wait(120)
        assert world.service.drain(0.1) is False
        world.scorer.gate.set()
        assert held.result()[0] == 200


def test_a_service_that_never_listened_is_drained_at_once() -> None:
    assert Service(MODEL).drain(1) is True


# What it counts.

SAMPLE = re.compile(
    r'[a-z_]+(?:\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"(?:,[a-z]+="(?:[^"\\\n]|\\["\\n])*")*\})? '
    r"(?:[0-9.e+-]+|\+Inf)"
)


def read_metrics(text: str) -> dict[str, float]:
    """Samples by name and labels; every line must be one that Prometheus reads."""
    samples, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            assert SAMPLE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            assert name not in samples
            samples[name] = float(value)
            family = re.sub(r"_(bucket|sum|count)$", "", name.partition("{")[0])
            assert family in kinds
    return samples


def test_metrics_tell_what_happened(world: World) -> None:
    world.score("a", "b", "c")
    world.score("nan")
    world.ask("POST", "/v1/score", b"{")
    world.ask("GET", '/no"where\\')
    status, text, headers = world.ask("GET", "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert text.endswith(b"\n")
    told = read_metrics(text.decode())
    assert told['reward_requests_total{path="/v1/score",status="200"}'] == 1
    assert told['reward_requests_total{path="/v1/score",status="500"}'] == 1
    assert told['reward_requests_total{path="/v1/score",status="400"}'] == 1
    assert told['reward_requests_total{path="other",status="404"}'] == 1
    assert told['reward_errors_total{kind="model"}'] == 1
    assert told['reward_errors_total{kind="not_json"}'] == 1
    assert told["reward_conversations_total"] == 3
    assert told["reward_batches_total"] == 2
    assert told['reward_batch_conversations_bucket{le="2.0"}'] == 1
    assert told['reward_batch_conversations_bucket{le="4.0"}'] == 2
    assert told['reward_batch_conversations_bucket{le="+Inf"}'] == 2
    assert told["reward_batch_conversations_sum"] == 4
    assert told["reward_request_seconds_count"] == 3
    assert told["reward_queue_conversations"] == 0
    assert told["reward_ready"] == 1


def test_labels_and_numbers_are_written_as_the_format_wants() -> None:
    registry = CollectorRegistry()
    count = Counter("c_total", "Things.", ["kind"], registry=registry)
    count.labels(kind='a"b\\c\nd').inc(2)
    count.labels(kind="other").inc(0.25)
    histogram = Histogram("h", "Sizes.", buckets=(1, 2.5), registry=registry)
    for value in (0.5, 1, 2, 99):
        histogram.observe(value)
    text = write_page(registry).decode()
    assert 'c_total{kind="a\\"b\\\\c\\nd"} 2.0' in text
    told = read_metrics(text)
    assert told['h_bucket{le="1.0"}'] == 2
    assert told['h_bucket{le="2.5"}'] == 3
    assert told['h_bucket{le="+Inf"}'] == told["h_count"] == 4
    assert "c_created" not in told
    assert (total(count), total(count, kind="other"), total(count, kind="none")) == (2.25, 0.25, 0)


def test_a_head_request_is_answered_as_a_get_without_a_body(world: World) -> None:
    status, body, headers = world.ask("HEAD", "/health")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0
    assert world.ask("HEAD", "/v1/score")[0] == 405
    assert world.ask("HEAD", "/nowhere")[0] == 404
    raw = world.send(b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("target", [b"http://somewhere:80/health", b"https://x/health"])
def test_a_target_in_the_form_for_proxies_is_understood(world: World, target: bytes) -> None:
    raw = world.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200 ")
