"""The chat service with a model that is a formula: what it answers, refuses, counts, drops."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.blocks.serving.chat_service import ChatService
from nemotron_style.steps.blocks.serving.completion import Choice, CompletionTask
from nemotron_style.steps.blocks.serving.config import ChatLimits
from nemotron_style.steps.blocks.serving.dynamic_batcher import FAILURES_UNTIL_UNHEALTHY, Batching
from nemotron_style.steps.blocks.serving.metrics import total
from waiting import until

DIGEST = "sha256:abcd"
CHAT = "/v1/chat/completions"
SOON = Batching(most=64, seconds=0.002, queued=1024)
ASK = [{"role": "user", "content": "Name a river."}]


@dataclass
class Formula:
    """Says what it was asked, by letters; closed, ``gate`` holds it."""

    max_model_len: int = 64
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[CompletionTask]] = field(default_factory=list)
    instead: Callable[[Sequence[CompletionTask]], Any] | None = None

    def encode(self, messages: Sequence[Any]) -> list[int]:
        if any(message["role"] == "nobody" for message in messages):
            raise InputError("the template does not know nobody")
        return [ord(letter) for message in messages for letter in message["content"]]

    def complete(self, tasks: Sequence[CompletionTask]) -> Any:
        self.batches.append(list(tasks))
        self.entered.set()
        assert self.gate.wait(120)
        if self.instead:
            return self.instead(tasks)
        if any("poison" in "".join(map(chr, task.prompt)) for task in tasks):
            raise RuntimeError("the kernel failed")
        return [[self.say(task, number) for number in range(task.n)] for task in tasks]

    @staticmethod
    def say(task: CompletionTask, number: int) -> Choice:
        text = f"{''.join(map(chr, task.prompt))}/{task.seed}/{number}"[: task.max_tokens]
        finish = "length" if len(text) == task.max_tokens else "stop"
        return Choice(text, finish, [-0.5] * len(text), list(text) if task.pieces else ())


@dataclass
class World:
    service: ChatService
    model: Formula
    port: int
    said: list[str]

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        told = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, path, body=data, headers=told | headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        kind = response.headers.get_content_type()
        return response.status, json.loads(text) if "json" in kind else text, response.headers

    def chat(self, text: str = "Name a river.", **fields: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": text}]
        return self.ask("POST", CHAT, {"messages": messages, **fields})[:2]


@contextmanager
def serving(
    *,
    limits: ChatLimits | None = None,
    token: str | None = None,
    ready: bool = True,
    batching: Batching = SOON,
) -> Iterator[World]:
    said: list[str] = []
    service = ChatService(DIGEST, "judge", limits=limits, token=token, say=said.append)
    model = Formula()
    model.gate.set()
    _, port = service.listen("127.0.0.1", 0)
    if ready:
        service.serve(model, batching)
    try:
        yield World(service, model, port, said)
    finally:
        model.gate.set()
        service.drain(20)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with serving() as made:
        yield made


@pytest.fixture
def world(shared: World) -> World:
    shared.model.batches.clear()
    return shared


# What it answers.


def test_an_answer_has_the_form_of_openai(world: World) -> None:
    status, told = world.chat("Hi", model="judge", seed=7)
    assert status == 200
    assert told.pop("id").startswith("chatcmpl-")
    assert abs(told.pop("created") - time.time()) < 60
    assert told.pop("system_fingerprint").startswith("fp_")
    message = {"role": "assistant", "content": "Hi/7/0", "refusal": None}
    assert told == {
        "object": "chat.completion",
        "model": "judge",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8},
        "seed": 7,
    }


def test_every_setting_reaches_the_model(world: World) -> None:
    fields = {"temperature": 0, "top_p": 0.5, "max_tokens": 9, "n": 3, "seed": -5, "stop": "x"}
    status, told = world.chat("Hi", **fields, logprobs=True)
    assert status == 200
    wanted = CompletionTask(
        (), 9, temperature=0.0, top_p=0.5, stop=("x",), n=3, seed=-5, pieces=True
    )
    [[task]] = world.model.batches
    assert replace(task, prompt=()) == wanted
    assert [one["index"] for one in told["choices"]] == [0, 1, 2]
    assert [one["message"]["content"] for one in told["choices"]] == [
        "Hi/-5/0",
        "Hi/-5/1",
        "Hi/-5/2",
    ]
    assert told["usage"]["completion_tokens"] == 21
    first = told["choices"][0]["logprobs"]["content"][0]
    assert first == {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": []}


def test_a_part_of_a_letter_has_no_bytes(world: World) -> None:
    world.model.instead = lambda tasks: [[Choice("", "stop", [-1.0], ["\ufffd"])]]
    try:
        _, told = world.chat(logprobs=True)
    finally:
        world.model.instead = None
    assert told["choices"][0]["logprobs"]["content"][0]["bytes"] is None


def test_without_a_seed_there_is_a_fresh_one_and_it_is_told(world: World) -> None:
    seeds = [world.chat("Hi")[1]["seed"] for _ in range(4)]
    assert len(set(seeds)) == 4
    assert seeds == [task.seed for [task] in world.model.batches]
    assert all(0 <= seed < 2**31 for seed in seeds)
    again = world.chat("Hi", seed=seeds[0])[1]["choices"][0]["message"]["content"]
    assert again == f"Hi/{seeds[0]}/0"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_as_long_as_it_may_be(world: World, name: str) -> None:
    _, told = world.chat("Hi", seed=1, **{name: 4})
    assert told["choices"][0]["message"]["content"] == "Hi/1"
    assert told["choices"][0]["finish_reason"] == "length"


def test_unasked_it_is_as_long_as_the_limit_or_the_model_allows(world: World) -> None:
    world.chat("a" * 60)
    with serving(limits=ChatLimits(completion_tokens=5)) as other:
        other.chat("a")
        assert [task.max_tokens for [task] in (*world.model.batches, *other.model.batches)] == [
            4,
            5,
        ]


def test_fields_that_say_what_is_so_anyway_are_taken(world: World) -> None:
    neutral = {
        "stream": False, "frequency_penalty": 0, "presence_penalty": 0.0, "top_k": -1, "min_p": 0,
        "response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}, "tools": None,
        "tool_choice": "none", "logit_bias": {}, "top_logprobs": None, "repetition_penalty": 1.0,
        "stop": None, "seed": None, "n": None, "temperature": None, "store": False, "model": None,
    }  # fmt: skip
    assert world.chat(**neutral)[0] == 200
    message = {**ASK[0], "name": None, "tool_calls": None}
    assert world.ask("POST", CHAT, {"messages": [message]})[0] == 200


def test_models_and_health_name_it(world: World) -> None:
    status, told, _ = world.ask("GET", "/v1/models")
    assert status == 200
    [model] = told["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("judge", "model", 64)
    status, told, _ = world.ask("GET", "/health")
    facts = {"model": DIGEST, "served_model_name": "judge", "max_model_len": 64}
    assert (status, told) == (200, {"status": "ready", **facts})


def test_a_request_may_name_the_model_by_its_digest(world: World) -> None:
    assert world.chat(model=DIGEST)[0] == 200


def test_while_the_model_loads_it_says_so() -> None:
    with serving(ready=False) as world:
        status, told, _ = world.ask("GET", "/health")
        assert (status, told["status"]) == (503, "loading")
        status, told, headers = world.ask("POST", CHAT, {"messages": ASK})
        assert (status, told["error"]["code"], headers["Retry-After"]) == (503, "loading", "5")
        assert told["error"]["type"] == "server_error"
        assert world.ask("GET", "/v1/models")[0] == 200


# What it refuses.

REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"stream": True}, "stream", "absent or false"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "absent or 0"),
    ({"frequency_penalty": False}, "frequency_penalty", "absent or 0"),
    ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
    ({"tools": [{}]}, "tools", "absent or []"),
    ({"stream_options": {}}, "stream_options", "must be absent"),
    ({"top_logprobs": 5}, "top_logprobs", "absent or 0"),
    ({"best_of": 2}, "best_of", "not a field that this service knows"),
    ({"temperature": -0.1}, "temperature", "0, or 0.01 to 2"),
    ({"temperature": 1e-9}, "temperature", "0, or 0.01 to 2"),
    ({"temperature": 2.5}, "temperature", "0, or 0.01 to 2"),
    ({"temperature": 10**400}, "temperature", "0, or 0.01 to 2"),
    ({"top_p": 10**400}, "top_p", "above 0, up to 1"),
    ({"temperature": "hot"}, "temperature", "got 'hot'"),
    ({"temperature": True}, "temperature", "got True"),
    ({"top_p": 0}, "top_p", "above 0, up to 1"),
    ({"n": 0}, "n", "1 to 8"),
    ({"n": 9}, "n", "1 to 8"),
    ({"n": 1.0}, "n", "1 to 8"),
    ({"seed": 2**63}, "seed", "64 bits"),
    ({"seed": 1.5}, "seed", "64 bits"),
    ({"stop": ""}, "stop", "1 to 256 characters"),
    ({"stop": ["a"] * 5}, "stop", "up to 4"),
    ({"stop": [1]}, "stop", "up to 4"),
    ({"stop": "\ud800"}, "stop", "text"),
    ({"logprobs": 1}, "logprobs", "true or false"),
    ({"model": 7}, "model", "the name of the model"),
    ({"max_tokens": 0}, "max_tokens", "above 0"),
    ({"max_tokens": 5000}, "max_tokens", "4096 at most"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "max_completion_tokens"),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": "hello"}, "messages", "at least one message"),
    ({"messages": None}, "messages", "at least one message"),
    ({"messages": ["hello"]}, "messages[0]", "role and content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text, got None"),
    ({"messages": [{**ASK[0], "content": [{"type": "text"}]}]}, "messages[0].content", "text"),
    ({"messages": [*ASK, {"role": "a b", "content": ""}]}, "messages[1].role", "name of a role"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "text"),
    ({"messages": [{**ASK[0], "name": "Jo"}]}, "messages[0].name", "role and content"),
    ({"messages": [{"role": "nobody", "content": ""}]}, "messages", "does not know nobody"),
    ({"messages": [{"role": "user", "content": "a" * 64}]}, "messages", "model holds 64"),
    ({"max_tokens": 60}, "messages", "the prompt has 13 tokens and the answer may have 60"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "message"), REFUSED)
def test_a_bad_request_is_refused_with_its_field(
    world: World, fields: dict[str, Any], param: str | None, message: str
) -> None:
    status, told, _ = world.ask("POST", CHAT, {"messages": ASK, **fields})
    assert (status, set(told)) == (400, {"error"})
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert (told["error"]["type"], told["error"]["param"]) == ("invalid_request_error", param)
    assert message in told["error"]["message"]
    assert "\n" not in told["error"]["message"]
    assert world.model.batches == []


@pytest.mark.parametrize(
    ("body", "message"), [(b"{", "line 1, column 2"), (b"[]", "an object"), (b"\xff", "UTF-8")]
)
def test_a_body_that_is_no_object_is_refused(world: World, body: bytes, message: str) -> None:
    status, told, _ = world.ask("POST", CHAT, body)
    assert status == 400
    assert message in told["error"]["message"]


def test_another_model_is_not_found(world: World) -> None:
    status, told = world.chat(model="gpt-4")
    assert (status, told["error"]["code"], told["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    status, told, _ = world.ask("GET", "/v1/completions")
    assert (status, told["error"]["code"]) == (404, "not_found")


def test_a_token_is_asked_for_everywhere() -> None:
    with serving(token="open-sesame") as world:
        for method, path, body in (("POST", CHAT, {"messages": ASK}), ("GET", "/v1/models", None)):
            status, told, _ = world.ask(method, path, body)
            assert (status, told["error"]["type"]) == (401, "authentication_error")
            assert world.ask(method, path, body, Authorization="Bearer open-sesame")[0] == 200
        assert world.ask("GET", "/health")[1] == {"status": "ready"}


# Batches, and who is left out of them.


def test_requests_in_flight_are_drawn_together_and_answered_each_with_its_own() -> None:
    with serving() as world, ThreadPoolExecutor(21) as pool:
        world.model.gate.clear()
        first = pool.submit(world.chat, "first", seed=0)
        assert world.model.entered.wait(120)
        rest = [pool.submit(world.chat, f"text {i}", seed=i, n=1 + i % 3) for i in range(20)]
        until(lambda: world.service.batcher.queued == sum(1 + i % 3 for i in range(20)))
        world.model.gate.set()
        assert first.result()[0] == 200
        for i, future in enumerate(rest):
            told = future.result()[1]
            texts = [one["message"]["content"] for one in told["choices"]]
            assert texts == [f"text {i}/{i}/{number}" for number in range(1 + i % 3)]
        assert list(map(len, world.model.batches)) == [1, 20]


def test_a_full_queue_says_when_to_ask_again() -> None:
    with serving(batching=Batching(64, 0.002, 3)) as world, ThreadPoolExecutor(2) as pool:
        world.model.gate.clear()
        held = [pool.submit(world.chat)]
        assert world.model.entered.wait(120)
        held += [pool.submit(world.chat, n=2)]
        until(lambda: world.service.batcher.queued == 2)
        status, told, headers = world.ask("POST", CHAT, {"messages": ASK, "n": 2})
        assert (status, told["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(headers["Retry-After"]) <= 60
        world.model.gate.set()
        assert [future.result()[0] for future in held] == [200, 200]


def test_a_client_that_is_gone_is_not_worked_for() -> None:
    with serving() as world, ThreadPoolExecutor(2) as pool:
        world.model.gate.clear()
        held = pool.submit(world.chat, "first")
        assert world.model.entered.wait(120)
        body = json.dumps({"messages": ASK}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", world.port), timeout=120) as leaving:
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            stays = pool.submit(world.chat, "stays")
            until(lambda: world.service.batcher.queued == 2)
        until(lambda: total(world.service.errors, kind="disconnected") == 1)
        world.model.gate.set()
        assert (held.result()[0], stays.result()[0]) == (200, 200)
        assert [len(batch) for batch in world.model.batches] == [1, 1]


def test_a_drain_answers_what_was_taken() -> None:
    with serving() as world, ThreadPoolExecutor(9) as pool:
        world.model.gate.clear()
        first = pool.submit(world.chat, "first")
        assert world.model.entered.wait(120)
        rest = [pool.submit(world.chat) for _ in range(7)]
        until(lambda: world.service.batcher.queued == 7)
        draining = pool.submit(world.service.drain, 120)
        until(lambda: world.service.batcher.closed)
        time.sleep(0.6)  # longer than waiting clients are left alone
        world.model.gate.set()
        assert draining.result() is True
        assert [one.result()[0] for one in (first, *rest)] == [200] * 8


# What the model does wrong.


@pytest.mark.parametrize(
    "instead",
    [
        lambda tasks: [],
        lambda tasks: None,
        lambda tasks: [None],
        lambda tasks: [[]],
        lambda tasks: [[Choice("", "stop", [])]],
        lambda tasks: [[Choice("a", "stop", [float("nan")])]],
        lambda tasks: [[Choice("a", "stop", [-1.0])] * 2],
        lambda tasks: [[Choice("a", "stop", [-1.0] * 65)]],
        lambda tasks: 1 / 0,
    ],
    ids=["none", "null", "nothing", "empty", "no token", "nan", "more", "too long", "raises"],
)
def test_whatever_is_no_answer_is_a_500_and_never_an_empty_text(
    world: World, instead: Callable[[Any], Any]
) -> None:
    world.model.instead = instead
    try:
        status, told = world.chat()
    finally:
        world.model.instead = None
    error = told["error"]
    assert (status, error["type"], error["code"]) == (500, "server_error", "model")
    assert error["message"] == "the model gave no usable answer"
    assert world.chat()[0] == 200


def test_only_the_culprit_of_a_batch_fails() -> None:
    with serving() as world, ThreadPoolExecutor(6) as pool:
        world.model.gate.clear()
        first = pool.submit(world.chat, "first")
        assert world.model.entered.wait(120)
        texts = ["fine", "poison", "good"]
        rest = [pool.submit(world.chat, text) for text in texts]
        until(lambda: world.service.batcher.queued == 3)
        world.model.gate.set()
        assert first.result()[0] == 200
        assert [future.result()[0] for future in rest] == [200, 500, 200]


def test_a_model_that_only_fails_is_given_up() -> None:
    with serving() as world:
        world.model.instead = lambda tasks: 1 / 0
        for _ in range(FAILURES_UNTIL_UNHEALTHY):
            assert world.chat()[0] == 500
        assert world.service.is_broken
        assert world.ask("GET", "/health")[0] == 503


# What it counts.


def test_metrics_tell_what_happened() -> None:
    with serving() as world:
        world.chat("Hi", seed=1, n=2)
        world.chat("Hi", seed=1, max_tokens=2)
        world.chat(n=0)
        end = time.monotonic() + 120
        told: dict[str, float] = {}
        while told.get("chat_request_seconds_count") != 3:  # counted after the answer is sent
            assert time.monotonic() < end
            lines = world.ask("GET", "/metrics")[1].decode().splitlines()
            pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            told = {name: float(value) for name, value in pairs}
    assert told[f'chat_requests_total{{path="{CHAT}",status="200"}}'] == 2
    assert told[f'chat_requests_total{{path="{CHAT}",status="400"}}'] == 1
    assert told['chat_errors_total{kind="invalid_value"}'] == 1
    assert told['chat_choices_total{finish="stop"}'] == 2
    assert told['chat_choices_total{finish="length"}'] == 1
    assert told['chat_tokens_total{kind="prompt"}'] == 4
    assert told['chat_tokens_total{kind="completion"}'] == 14
    assert told["chat_batches_total"] == 2
    assert told["chat_batch_choices_sum"] == 3
    assert told["chat_request_seconds_count"] == 3
    assert told["chat_queue_choices"] == 0
    assert told["chat_ready"] == 1
