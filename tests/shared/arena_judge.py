"""A judge behind an OpenAI-compatible endpoint that says what a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nemotron_style.steps.blocks.data.toy_truth import Truth

Opinion = Callable[[str, str, str], dict[str, float] | str]
"""A verdict, or any other text, from the prompt and both answers."""


def helpful(truth: Truth) -> Opinion:
    """Prefers the truly more helpful answer, and ties where they are equally so."""

    def say(prompt: str, first: str, second: str) -> dict[str, float]:
        scores = [1 + truth.score(prompt, text)["helpfulness"] for text in (first, second)]
        return {"score_1": scores[0], "score_2": scores[1], "ranking": 3.5}

    return say


class JudgeServer:
    """A context manager; ``opinion`` and ``status`` may be changed while it runs.

    ``bodies`` are the questions it was asked, ``after`` is called with each once it is noted.
    """

    def __init__(self, opinion: Opinion, *, digest: str | None = None) -> None:
        self.opinion, self.digest = opinion, digest
        self.status, self.bodies = 200, list[Any]()
        self.after: Callable[[int], None] = lambda count: None
        self.lock = threading.Lock()

    def __enter__(self) -> JudgeServer:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one piece

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                told = {"/v1/models": {"data": [{"id": "judge"}]}}
                told |= {"/health": {"model": owner.digest}} if owner.digest else {}
                self.reply(200 if self.path in told else 404, told.get(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.bodies.append(body)
                    count = len(owner.bodies)
                owner.after(count)
                self.reply(owner.status, owner.complete(body))

            def reply(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def complete(self, body: Any) -> dict[str, Any]:
        told = {message["role"]: message["content"] for message in body["messages"]}
        said = self.opinion(told["user"], told["response_1"], told["response_2"])
        content = said if isinstance(said, str) else f"Let me see.\n{json.dumps(said)}"
        message = {"role": "assistant", "content": content}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
