"""Requests a second and latency of the scoring service when 200 clients ask it at once.

``python bench/serving.py`` prints a line a round; ``smoke`` makes it one short round. The service
runs in a process of its own, with a scorer that only counts letters: what is measured is HTTP, JSON
and batching. Each client keeps one connection and asks again as soon as it has its answer; all are
bare sockets in one process, so that they cost as little as they can. Beside other work on the same
machine the wall time says little, and the CPU time still says what a request costs.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import psutil

CLIENTS = 200
ROUNDS, REQUESTS = (1, 2) if "smoke" in sys.argv[1:] else (5, 50)
CONVERSATIONS = 4
CONVERSATION = [
    {"role": "user", "content": "Name three rivers and say where they flow."},
    {"role": "assistant", "content": "The Rhine, the Nile and the Amazon. " * 8},
]
SERVICE = """
import sys

from nemotron_style.steps.blocks.reward.types import RewardScore
from nemotron_style.steps.blocks.serving.dynamic_batcher import Batching
from nemotron_style.steps.blocks.serving.score_api import ScoreService


def count_letters(conversations):
    counts = [float(len(one[-1]["content"])) for one in conversations]
    return [RewardScore(count, {"letters": count}) for count in counts]


service = ScoreService("sha256:bench")
_, port = service.listen("127.0.0.1", 0)
service.serve(count_letters, ["letters"], Batching(64, 0.005, 4096))
print(port, flush=True)
sys.stdin.read()
service.drain(10)
"""


def write_request() -> bytes:
    """The bytes of one request."""
    body = json.dumps({"conversations": [CONVERSATION] * CONVERSATIONS}).encode()
    head = "POST /v1/score HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def run_client(port: int, request: bytes) -> list[float]:
    """Seconds of each of one client's requests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    for _ in range(REQUESTS):
        begin = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        answer = await reader.readexactly(length)
        seconds.append(time.perf_counter() - begin)
        assert b'"results"' in answer
    writer.close()
    return seconds


async def run_round(port: int, request: bytes) -> list[float]:
    """Seconds of every request when all clients ask at once."""
    clients = [run_client(port, request) for _ in range(CLIENTS)]
    return [one for each in await asyncio.gather(*clients) for one in each]


def main() -> None:
    """Start the service, warm it up, and print :data:`ROUNDS` rounds."""
    request = write_request()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVICE], **pipes) as service:
        port = int(service.stdout.readline())
        asyncio.run(run_client(port, request))
        print(f"{CLIENTS} clients, {CONVERSATIONS} conversations in a request")
        process = psutil.Process(service.pid)
        for _ in range(ROUNDS):
            before, begin = process.cpu_times(), time.perf_counter()
            seconds = sorted(asyncio.run(run_round(port, request)))
            wall, after = time.perf_counter() - begin, process.cpu_times()
            p50, p99 = (1e3 * seconds[int(share * (len(seconds) - 1))] for share in (0.50, 0.99))
            cpu = after.user + after.system - before.user - before.system
            print(
                f"  {len(seconds) / wall:6.0f} requests a second   p50 {p50:6.1f} ms"
                f"   p99 {p99:6.1f} ms   {1e3 * cpu / len(seconds):.2f} ms of CPU a request",
                flush=True,
            )
        service.communicate()


if __name__ == "__main__":
    main()
