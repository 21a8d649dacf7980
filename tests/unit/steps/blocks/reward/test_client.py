"""The client of a reward model against a server that does everything wrong: no failure is a score.

Every fault is met twice: passing (the server recovers, and the scores are the right ones) and
lasting (the client gives up within its bounds, and says what it saw).
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from held_port import hold_port
from nemotron_style.runtime.errors import Interrupted, StepFailed
from nemotron_style.steps.blocks.http import client as http_client
from nemotron_style.steps.blocks.http.retry import RetryPolicy
from nemotron_style.steps.blocks.reward.client import RewardClient, RewardUnavailable
from waiting import until

OUTPUTS = ("helpfulness", "verbosity")
MODEL = "sha256:aaaa"
QUICK = RetryPolicy(tries=3, timeout=120, first_pause=0.001, longest_pause=0.01)
HASTY = RetryPolicy(tries=3, timeout=0.4, first_pause=0.001, longest_pause=0.01)
PATIENT = RetryPolicy(tries=40, timeout=120, first_pause=0.001, longest_pause=0.002)
CONVERSATIONS = [
    [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"{n} " * n}]
    for n in range(1, 8)
]


def right(conversation: Any) -> float:
    """The score that this conversation has, and no other."""
    return float(sum(map(ord, conversation[-1]["content"]))) / 8


@dataclass
class Call:
    """One request, and ways to answer it."""

    connection: socket.socket
    body: Any
    earlier: list[dict[str, Any]]

    @property
    def good(self) -> dict[str, Any]:
        results = [
            {
                "id": name,
                "score": right(one),
                "attributes": {"helpfulness": right(one), "verbosity": 1.0},
            }
            for one, name in zip(self.body["conversations"], self.body["ids"], strict=True)
        ]
        return {"model": MODEL, "results": results}

    def send(self, text: str | bytes | Any, status: str = "200 OK", **headers: Any) -> None:
        data = text if isinstance(text, bytes) else text.encode() if isinstance(text, str) else None
        data = json.dumps(text).encode() if data is None else data
        told = {"Content-Type": "application/json", "Content-Length": len(data)}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in told.items() if v is not None)]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)

    def change(self, **fields: Any) -> None:
        """The good answer with fields of its first result replaced, or (None) left out."""
        answer = self.good
        first = answer["results"][0] | fields
        kept = {name: value for name, value in first.items() if value is not LEFT_OUT}
        answer["results"][0] = kept
        self.send(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def wait_for_end(self) -> None:
        """Until the client has had enough."""
        self.connection.settimeout(120)
        with contextlib.suppress(OSError):
            while self.connection.recv(65536):
                pass


LEFT_OUT = object()
Fault = Callable[[Call], None]


def drip(call: Call, **headers: Any) -> None:
    call.send(b"", **{"Content_Length": 100_000, **headers})
    gone = threading.Event()
    for _ in range(1000):
        call.connection.sendall(b" ")
        gone.wait(0.02)


def drip_headers(call: Call) -> None:
    call.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    gone = threading.Event()
    for number in range(1000):
        call.connection.sendall(f"X-{number}: 1\r\n".encode())
        gone.wait(0.02)


def late(call: Call) -> None:
    threading.Event().wait(HASTY.timeout * 4)  # and after the limit of any test that uses it
    call.send(call.good)


def cut_short(call: Call) -> None:
    text = json.dumps(call.good).encode()
    call.send(text[: len(text) // 2], Content_Length=len(text))
    call.close()


def close_in_header(call: Call) -> None:
    call.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
    call.close()


def wrong_order(call: Call) -> None:
    answer = call.good
    answer["results"].reverse()
    call.send(answer)


def longer(call: Call) -> None:
    answer = call.good
    answer["results"].append(answer["results"][0])
    call.send(answer)


def replay(call: Call) -> None:
    """What another request was answered, word for word."""
    call.send(call.earlier[0] if call.earlier else [])


def promise_too_little(call: Call) -> None:
    call.send(call.good, Content_Length=20)


def huge(call: Call) -> None:
    call.send(b"", Content_Length=10**12)
    while True:
        call.connection.sendall(b" " * 65536)


def other_model(call: Call) -> None:
    call.send(call.good | {"model": "sha256:bbbb"})


FAULTS: dict[str, tuple[Fault, str]] = {
    "late": (late, "timeout"),
    "never": (Call.wait_for_end, "timeout"),
    "slow drip": (drip, "timeout"),
    "slow drip to the end": (
        lambda call: drip(call, Content_Length=None, Connection="close"),
        "timeout",
    ),
    "slow headers": (drip_headers, "timeout"),
    "429": (lambda call: call.send("{}", "429 Too Many"), "http_429"),
    "429 with a time": (
        lambda call: call.send("{}", "429 Too Many", Retry_After="0.002"),
        "http_429",
    ),
    "429 with an endless time": (
        lambda call: call.send("{}", "429 Too Many", Retry_After="9e9"),
        "http_429",
    ),
    "429 with a date": (
        lambda call: call.send("", "429 x", Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"),
        "http_429",
    ),
    "500": (lambda call: call.send("{}", "500 Error"), "http_500"),
    "502 in HTML": (lambda call: call.send("<html>Bad Gateway", "502 Bad Gateway"), "http_502"),
    "503": (lambda call: call.send(call.good, "503 Unavailable"), "http_503"),
    "204": (lambda call: call.send("", "204 No Content"), "http_204"),
    "HTML with 200": (lambda call: call.send("<html>Please log in</html>"), "malformed"),
    "nothing with 200": (lambda call: call.send(""), "malformed"),
    "a list": (lambda call: call.send(call.good["results"]), "malformed"),
    "deeply nested": (lambda call: call.send("[" * 100_000), "malformed"),
    "not UTF-8": (lambda call: call.send(b'{"model": "\xff"}'), "malformed"),
    "no results": (lambda call: call.send({"model": MODEL}), "malformed"),
    "shorter": (
        lambda call: call.send(call.good | {"results": call.good["results"][1:]}),
        "wrong_length",
    ),
    "longer": (longer, "wrong_length"),
    "wrong order": (wrong_order, "wrong_order"),
    "another's answer": (replay, "wrong_order|malformed"),
    "no id": (lambda call: call.change(id=LEFT_OUT), "wrong_order"),
    "NaN": (lambda call: call.change(score=float("nan")), "malformed"),
    "NaN as text": (lambda call: call.change(score="NaN"), "not_a_score"),
    "infinity": (lambda call: call.change(score=float("inf")), "malformed"),
    "more than a float": (
        lambda call: call.send(json.dumps(call.good).replace(": 1.0", ": 1e999")),
        "not_a_score",
    ),
    "an endless integer": (lambda call: call.change(score=10**400), "not_a_score"),
    "null": (lambda call: call.change(score=None), "not_a_score"),
    "text": (lambda call: call.change(score="1.5"), "not_a_score"),
    "a list of one": (lambda call: call.change(score=[1.5]), "not_a_score"),
    "true": (lambda call: call.change(score=True), "not_a_score"),
    "no score": (lambda call: call.change(score=LEFT_OUT), "not_a_score"),
    "no attributes": (lambda call: call.change(attributes=LEFT_OUT), "not_a_score"),
    "an attribute missing": (
        lambda call: call.change(attributes={"helpfulness": 1.0}),
        "not_a_score",
    ),
    "an attribute of null": (
        lambda call: call.change(attributes={"helpfulness": None, "verbosity": 1.0}),
        "not_a_score",
    ),
    "a result of null": (
        lambda call: call.send(call.good | {"results": [None] * len(call.body["ids"])}),
        "malformed",
    ),
    "cut short": (cut_short, "cut_short"),
    "closed": (Call.close, "disconnected"),
    "closed in the header": (close_in_header, "malformed|disconnected"),
    "too little promised": (promise_too_little, "malformed"),
    "too much promised": (
        lambda call: (call.send(call.good, Content_Length=100_000), call.close())[0],
        "cut_short",
    ),
    "huge": (huge, "malformed|cut_short"),
    "no HTTP": (lambda call: call.connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"), "malformed"),
    "redirect": (
        lambda call: call.send("", "302 Found", Location="http://127.0.0.1:9/v1/score"),
        "redirect",
    ),
    "other model": (other_model, "other_model"),
}
REFUSALS = ("400 Bad", "401 No", "403 No", "404 No", "413 Large", "422 Invalid")


@dataclass
class Faulty:
    """Answers what :attr:`script` says, one entry a request, and then rightly."""

    script: Iterator[Fault | None] = field(default_factory=lambda: iter(()))
    health: Any = field(
        default_factory=lambda: {"status": "ready", "model": MODEL, "outputs": OUTPUTS}
    )
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)
    port: int = 0
    held: socket.socket = field(default_factory=socket.socket)

    def __enter__(self) -> Faulty:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self.held.close()

    def die(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.held.close()
        self.held = hold_port(self.port)  # until it comes back, or another process may get it
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
            while line := reader.readline():
                length = 0
                while (header := reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    length = int(value) if name == "Content-Length" else length
                body = json.loads(reader.read(length)) if length else None
                self.answer(Call(connection, body, self.earlier), line.split()[1].decode())

    def answer(self, call: Call, path: str) -> None:
        if path == "/health":
            return call.send(self.health)
        with self.lock:
            self.requests += 1
            fault = next(self.script, None)
        if fault is None:
            self.earlier.append(call.good)
            call.send(call.good)
        else:
            fault(call)
        return None


@pytest.fixture
def server() -> Iterator[Faulty]:
    with Faulty() as faulty:
        yield faulty


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 2**20)


def client(server: Faulty, **how: Any) -> RewardClient:
    return RewardClient(server.url, **{"retry_policy": QUICK, "batch": 100, "seed": 1, **how})


def forever(fault: Fault) -> Iterator[Fault]:
    while True:
        yield fault


def check(scores: Any, conversations: Any = CONVERSATIONS) -> None:
    """Every score is the right one: nothing that went wrong became a number."""
    assert [scored.score for scored in scores] == [right(one) for one in conversations]
    assert [scored.attributes["helpfulness"] for scored in scores] == [
        right(one) for one in conversations
    ]


def fails(counts: dict[str, int]) -> dict[str, int]:
    return {name: number for name, number in counts.items() if name.startswith("failed_")}


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_passing_fault_the_scores_are_right(server: Faulty, name: str) -> None:
    fault, kind = FAULTS[name]
    with client(server, retry_policy=replace(QUICK, tries=20)) as reward:
        check(reward.score(CONVERSATIONS))
        if kind == "timeout":
            reward.retry_policy = replace(HASTY, tries=20)
        server.script = iter([fault])
        check(reward.score(CONVERSATIONS[::-1]), CONVERSATIONS[::-1])
        counts = reward.counts
    if fault is not Call.close:  # a kept connection that is closed is asked anew at once
        ((told, number),) = fails(counts).items()
        assert told.removeprefix("failed_") in kind.split("|")
        assert number == counts["retries"]
        assert number == 1 or kind == "timeout"  # where the machine is slow, the rest is late too
    assert counts["conversations"] == 2 * len(CONVERSATIONS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_ends_within_its_bounds_and_says_what_it_was(
    server: Faulty, name: str
) -> None:
    fault, kind = FAULTS[name]
    with client(server) as reward:
        reward.wait_ready(120)
        server.script = forever(fault)
        reward.retry_policy = HASTY if kind == "timeout" else QUICK
        begun = time.monotonic()
        with pytest.raises(RewardUnavailable) as caught:
            reward.score(CONVERSATIONS)
    assert time.monotonic() - begun < QUICK.tries * HASTY.timeout + 60
    assert not caught.value.permanent
    assert isinstance(caught.value, StepFailed)
    assert f"{QUICK.tries} tries" in str(caught.value)
    assert any(word in str(caught.value) for word in kind.split("|"))
    assert sum(fails(reward.counts).values()) == QUICK.tries
    assert reward.counts["given_up"] == 1
    assert "conversations" not in reward.counts


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_not_repeated(server: Faulty, status: str) -> None:
    error = {"error": {"type": "invalid", "message": "conversations[0]: too long"}}
    server.script = forever(lambda call: call.send(error, status))
    with client(server) as reward, pytest.raises(RewardUnavailable, match="too long") as caught:
        reward.score(CONVERSATIONS)
    assert caught.value.permanent
    assert "refused conversations 0 to 6 (1 try: 1 x http_" in str(caught.value)
    assert server.requests == 1


def test_nothing_there_is_told_within_the_deadline() -> None:
    begun = time.monotonic()
    with hold_port() as held:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with RewardClient(url, retry_policy=HASTY) as reward:
            with pytest.raises(RewardUnavailable, match=r"not ready within 1 s .*unreachable"):
                reward.wait_ready(1.0)
            with pytest.raises(RewardUnavailable, match="unreachable"):
                reward.score(CONVERSATIONS)
    assert time.monotonic() - begun < 60


def test_readiness_is_waited_for_and_not_slept_for(server: Faulty) -> None:
    ready, server.health = server.health, {"status": "loading"}
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 4:
            server.health = ready

    with client(server, sleep=sleep) as reward:
        health = reward.wait_ready(60)
    assert (health.model, health.outputs) == (MODEL, OUTPUTS)
    assert len(looks) == 4
    assert max(looks) <= QUICK.longest_pause
    assert reward.counts["failed_not_ready"] == 4


@pytest.mark.parametrize(
    "health",
    [
        {"status": "ready", "model": 5, "outputs": OUTPUTS},
        {"status": "ready", "model": MODEL, "outputs": []},
        {"status": "ready", "model": MODEL, "outputs": "helpfulness"},
        {"status": "fine"},
        [],
    ],
)
def test_a_health_that_says_too_little_is_not_ready(server: Faulty, health: Any) -> None:
    server.health = health
    with client(server) as reward, pytest.raises(RewardUnavailable):
        reward.wait_ready(0.05)


def test_a_service_that_does_not_name_its_model_wants_a_token(server: Faulty) -> None:
    server.health = {"status": "ready", "outputs": OUTPUTS}
    with client(server) as reward, pytest.raises(RewardUnavailable, match="refused the token"):
        reward.wait_ready(60)


def test_a_server_that_dies_for_good_ends_the_run(server: Faulty) -> None:
    def die(call: Call) -> None:
        server.die()

    server.script = iter([None, None, die])
    with (
        client(server, batch=2, at_once=1) as reward,
        pytest.raises(RewardUnavailable, match=r"unreachable|disconnected"),
    ):
        reward.score(CONVERSATIONS)
    assert reward.counts["conversations"] == 4


def test_a_server_that_comes_back_is_taken_up_again() -> None:
    with Faulty() as first:
        with client(first, retry_policy=PATIENT) as reward:
            check(reward.score(CONVERSATIONS))
            first.die()
            pauses = iter(range(3))

            def restart(seconds: float) -> None:
                if next(pauses, None) == 2:
                    again.__enter__()

            again = Faulty(port=first.port)
            reward.sleep = restart
            check(reward.score(CONVERSATIONS))
            assert reward.counts["failed_unreachable"] >= 3
        again.__exit__()


def test_another_model_half_way_is_never_mixed_in(server: Faulty) -> None:
    server.script = iter([None, None, *[other_model] * QUICK.tries])
    with (
        client(server, batch=2, at_once=1) as reward,
        pytest.raises(RewardUnavailable, match="sha256:bbbb' and was 'sha256:aaaa"),
    ):
        reward.score(CONVERSATIONS)


def test_under_every_fault_at_once_every_score_is_right(server: Faulty) -> None:
    """Half of all requests fail, each in a way that is drawn; 300 conversations of 100 requests."""
    drawn = random.Random(7)
    quick = [fault for fault, kind in FAULTS.values() if "timeout" not in kind]
    server.script = iter(
        [drawn.choice(quick) if drawn.random() < 0.5 else None for _ in range(3000)]
    )
    conversations = [
        [{"role": "assistant", "content": f"{number}" * (number % 9 + 1)}] for number in range(300)
    ]
    with client(server, retry_policy=PATIENT, batch=3, at_once=8) as reward:
        check(reward.score(conversations), conversations)
        counts = reward.counts
    assert counts["conversations"] == 300
    assert sum(fails(counts).values()) == counts["retries"] > 50


def test_pauses_grow_stay_bounded_and_repeat_with_a_seed(server: Faulty) -> None:
    patience = RetryPolicy(tries=9, timeout=120, first_pause=1.0, longest_pause=20.0)

    def pauses(seed: int) -> list[float]:
        server.script = forever(lambda call: call.send("{}", "500 x"))
        told: list[float] = []
        with (
            client(server, retry_policy=patience, seed=seed, sleep=told.append) as reward,
            pytest.raises(RewardUnavailable),
        ):
            reward.score(CONVERSATIONS)
        return told

    first = pauses(3)
    assert first == pauses(3)
    assert first != pauses(4)
    assert len(first) == 8
    for number, pause in enumerate(first):
        whole = min(2.0**number, 20.0)
        assert whole / 2 <= pause <= whole


@pytest.mark.parametrize(("asked", "pause"), [("7", 7.0), ("9999", 20.0), ("0", 0.5), ("-1", 0.5)])
def test_retry_after_is_honoured_up_to_a_bound(server: Faulty, asked: str, pause: float) -> None:
    server.script = iter([lambda call: call.send("{}", "429 x", Retry_After=asked)])
    patience = RetryPolicy(tries=2, timeout=120, first_pause=0.5, longest_pause=20.0)
    told: list[float] = []
    with client(server, retry_policy=patience, sleep=told.append) as reward:
        check(reward.score(CONVERSATIONS))
    (seconds,) = told
    assert seconds == pytest.approx(pause, rel=0.5 if pause < 1 else 0)


def test_a_run_that_is_stopped_does_not_wait_on(server: Faulty) -> None:
    server.script = forever(lambda call: call.send("{}", "503 x", Retry_After="600"))
    patience = RetryPolicy(tries=50, timeout=120, longest_pause=600)
    with client(server, retry_policy=patience) as reward:
        reward.stopping = lambda: server.requests > 0
        with pytest.raises(Interrupted):
            reward.score(CONVERSATIONS)


def test_one_hopeless_part_ends_the_waiting_of_the_others(server: Faulty) -> None:
    def refuse_the_last(call: Call) -> None:
        last = call.body["conversations"][0] == CONVERSATIONS[-1]
        call.send("{}", "422 x" if last else "503 x", Retry_After="600")

    server.script = forever(refuse_the_last)
    patience = RetryPolicy(tries=50, timeout=120, longest_pause=600)
    with (
        client(server, retry_policy=patience, batch=1, at_once=7) as reward,
        pytest.raises(RewardUnavailable) as caught,
    ):
        reward.score(CONVERSATIONS)
    assert caught.value.permanent


def test_only_text_is_sent_in_bounded_parts_over_kept_connections(server: Faulty) -> None:
    server.health = server.health | {"max_conversations": 3}
    with client(server, batch=100, at_once=1) as reward:
        check(reward.score(CONVERSATIONS))
        assert reward.score([]) == []
    assert [len(answer["results"]) for answer in server.earlier] == [3, 3, 1]
    assert len(server.connections) == 1


def test_the_token_is_sent_and_never_shown(server: Faulty) -> None:
    seen: list[bytes] = []
    server.serve = lambda connection: seen.append(connection.recv(65536))  # type: ignore[method-assign]
    with client(server, token="hush-hush") as reward, pytest.raises(RewardUnavailable) as caught:
        reward.wait_ready(1.0)
    until(lambda: any(b"Authorization: Bearer hush-hush\r\n" in text for text in seen))
    assert "hush" not in repr(reward) + str(caught.value) + str(reward.counts)
