"""A small model, prompts, and a scripted judge: what rl/rlhf reads and whom it asks."""

from __future__ import annotations

import itertools
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import save_model, weights_digest
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.data.jsonl import write_rows
from nemotron_style.steps.blocks.data.tokenizer_training import train_tokenizer
from nemotron_style.steps.blocks.model.language_model import build_model
from nemotron_style.steps.blocks.model.parallel import initialize
from nemotron_style.steps.blocks.settings.model_config import ModelConfig
from nemotron_style.steps.rl.rlhf.config import Config
from nemotron_style.steps.rl.rlhf.recipe import run
from overrides import override

WORDS = ("red", "blue", "small", "large", "old", "new", "warm", "cold")
SETTINGS: dict[str, Any] = {
    "seed": 5,
    "grpo": {
        "num_prompts_per_step": 3,
        "num_generations_per_prompt": 4,
        "max_num_epochs": 9,
        "max_num_steps": 3,
        "val_period": 2,
        "val_at_end": True,
    },
    "loss_fn": {"force_on_policy_ratio": True},
    "policy": {
        "train_global_batch_size": 12,
        "train_micro_batch_size": 4,
        "logprob_batch_size": 8,
        "precision": "float32",
        "generation": {"max_new_tokens": 8},
        "megatron_cfg": {"optimizer": {"lr": 1e-3}},
    },
    "env": {"nemo_gym": {"genrm_compare": {"resources_servers": {"genrm_compare": {}}}}},
    "judge": {"min_accuracy": None, "timeout": 60.0, "ready_seconds": 60.0},
    "checkpointing": {"save_period": 1},
}
Reply = dict[str, Any]


def right(body: Reply) -> Reply:
    """The verdict on two answers: by what they are, whatever the order and the seed."""
    told = {message["role"]: message["content"] for message in body["messages"]}
    first, second = (
        1 + sum(map(ord, told[name])) % 41 / 10 for name in ("response_1", "response_2")
    )
    return {"score_1": first, "score_2": second, "ranking": 3 if first >= second else 4}


def even(_body: Reply) -> Reply:
    """Every two answers are worth the same."""
    return {"score_1": 3, "score_2": 3, "ranking": 3.5}


@dataclass
class Judge:
    """A judge behind HTTP. ``fault(number, body)`` may answer instead; it is given the handler."""

    opinion: Callable[[Reply], Reply] = right
    fault: Callable[[int, Reply], Callable[[Any], None] | None] = lambda _number, _body: None
    bodies: list[Reply] = field(default_factory=list)
    url: str = ""
    name: str = "judge"
    gone: bool = False

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[Judge]:
        """Listen until the end, on a free port or on ``port``."""
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.gone = False
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self.gone = True  # for connections that are open still
            server.shutdown()
            server.server_close()


def completion(text: Any, **changes: Any) -> Reply:
    """A chat completion of one choice."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"} | changes]}


def _handler(judge: Judge) -> type[BaseHTTPRequestHandler]:
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing is told."""

        def do_GET(self) -> None:
            self.answer({"object": "list", "data": [{"id": judge.name}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if judge.gone:
                return self.reset()
            judge.bodies.append(body)
            fault = judge.fault(next(numbers), body)
            if fault is not None:
                with suppress(OSError):
                    fault(self)
                return None
            return self.answer(completion("Let me see.\n" + json.dumps(judge.opinion(body))))

        def answer(self, told: Any, status: int = 200, length: int | None = None) -> None:
            data = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

        def reset(self) -> None:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True

    return Handler


def _say(text: Any, **changes: Any) -> Callable[[Any], None]:
    return lambda handler: handler.answer(completion(text, **changes))


def _send(told: Any, status: int = 200) -> Callable[[Any], None]:
    return lambda handler: handler.answer(told, status)


def _cut(handler: Any) -> None:
    handler.answer(b'{"choices": [', length=500)
    handler.reset()


def _late(handler: Any) -> None:
    time.sleep(1.5)
    handler.close_connection = True


FAULTS: tuple[Callable[[Any], None], ...] = (
    _send({"error": "busy"}, 503),
    _send({"error": "slow down"}, 429),
    _send({"error": "broken"}, 500),
    _send(b"<html>Bad Gateway", 502),
    _send(b"<html>Please log in"),
    _send(b""),
    _send(b'{"choices": ['),
    _send({"choices": []}),
    _send({"choices": None}),
    _send({"error": {"message": "out of memory"}}),
    lambda handler: handler.reset(),
    _cut,
    _late,
    _say(None),
    _say(""),
    _say("Both are fine."),
    _say('{"score_1": 4, "score_2": 2, "ra', finish_reason="length"),
    _say('{"score_1": 11, "score_2": 2, "ranking": 1}'),
    _say('{"score_1": "4", "score_2": null, "ranking": 1}'),
    _say('{"score_1": NaN, "score_2": 1, "ranking": 1}'),
    _say('<think>I would say {"score_1": 5, "score_2": 1, "ranking": 1}'),
)


@dataclass
class World:
    """A store with the inputs of the step."""

    store: Store
    model: Artifact
    prompts: Artifact
    validation: Artifact

    def data(self, name: str, rows: Sequence[dict[str, Any]]) -> Artifact:
        """Rows as an artifact."""
        staged = self.store.stage(name)
        write_rows(staged / "rows.jsonl", rows)
        return self.store.commit(staged, name=name, kind="prompts_jsonl")

    def context(self, run_dir: Path, **changes: Any) -> StepContext:
        """A context for the run in ``run_dir``; ``changes`` replace inputs or seating."""
        names = ("model", "prompts", "validation")
        own = {name: changes.pop(name) for name in ("adapter",) if name in changes}
        inputs = {name: changes.pop(name, getattr(self, name)) for name in names}
        inputs |= {name: changes.pop(name) for name in list(changes) if "." in name} | own
        changes.setdefault("stop", Stop())
        kept = {name: artifact for name, artifact in inputs.items() if artifact is not None}
        changes.setdefault("outputs", ("model",))
        return StepContext(run_dir=run_dir, inputs=kept, **changes)

    def train_in(self, run_dir: Path, *overrides: str, **changes: Any) -> StepContext:
        """Run the step and return its context."""
        ctx = self.context(run_dir, **changes)
        try:
            run(settings(*overrides), ctx)
        finally:
            ctx.metrics.close()
        return ctx


def settings(*overrides: str) -> Config:
    """The settings of the small world, with ``a.b=json`` on top."""
    return Config.model_validate(override(SETTINGS, *overrides))


def ask(text: str) -> dict[str, Any]:
    """A row of messages."""
    return {"messages": [{"role": "user", "content": text}]}


def ask_gym(text: str) -> dict[str, Any]:
    """A row of NeMo-Gym."""
    return {
        "responses_create_params": {"input": [{"role": "user", "content": text}], "tools": []},
        "agent_ref": {"type": "responses_api_agents", "name": "genrm_simple_agent"},
        "dataset": "small",
    }


def make_world(root: Path, sizes: ModelConfig | None = None) -> World:
    """A random model (of ``sizes``) and a few prompts, in both forms of rows."""
    initialize(seed=1)
    texts = [f"System User Assistant describe {a} {b}" for a in WORDS for b in WORDS]
    tokenizer = train_tokenizer(texts, 320, root / "tokenizer", tokens=ChatPromptTokens())
    sizes = sizes or ModelConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        vocab_size=tokenizer.vocab_size,
        max_sequence_length=64,
    )
    store = Store(root / "store")
    staged = store.stage("model")
    model = build_model(sizes, seed=3, ddp=False)
    save_model(model, staged, config=sizes, tokenizer=tokenizer.path)
    facts = {"weights_digest": weights_digest(staged)}
    artifact = store.commit(staged, name="start", kind="checkpoint_megatron", facts=facts)
    asked = [f"describe {a} {b}" for a in WORDS for b in WORDS[:3] if a != b]
    world = World(store, artifact, artifact, artifact)
    rows = [(ask if number % 2 else ask_gym)(text) for number, text in enumerate(asked[:12])]
    world.prompts = world.data("train", rows)
    world.validation = world.data("validation", [ask(text) for text in asked[12:18]])
    return world
