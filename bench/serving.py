"""Requests a second and latency of the scoring service when many clients ask it at once.

    python bench/serving.py [--clients 200] [--requests 50] [--rounds 3]

The service runs in a process of its own, with a scorer that only counts letters: what is measured
is HTTP, JSON and batching. Each client keeps one connection and asks again as soon as it has its
answer. The clients are bare sockets in one process, so that they cost as little as they can.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time

import psutil

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


def write_request(conversations: int) -> bytes:
    """The bytes of one request."""
    body = json.dumps({"conversations": [CONVERSATION] * conversations}).encode()
    head = "POST /v1/score HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def run_client(port: int, request: bytes, requests: int) -> list[float]:
    """Seconds of each of one client's requests."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    for _ in range(requests):
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


async def run_round(
    service: psutil.Process, port: int, request: bytes, *, clients: int, requests: int
) -> None:
    """Let all clients ask at once, and print what they saw and what it took the service."""
    before, begin = service.cpu_times(), time.perf_counter()
    answers = await asyncio.gather(*(run_client(port, request, requests) for _ in range(clients)))
    wall, after = time.perf_counter() - begin, service.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    seconds = sorted(one for each in answers for one in each)
    p50, p99 = (1e3 * seconds[int(share * (len(seconds) - 1))] for share in (0.50, 0.99))
    print(
        f"  {len(seconds) / wall:7.0f} requests a second   p50 {p50:6.1f} ms   p99 {p99:6.1f} ms"
        f"   {1e3 * cpu / len(seconds):.2f} ms of CPU a request",
        flush=True,
    )


def main() -> None:
    """Start the service, warm it up, and measure ``--rounds`` rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=50, help="of each client, in a round")
    parser.add_argument("--conversations", type=int, default=4, help="in a request")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    request = write_request(asked.conversations)
    command = [sys.executable, "-c", SERVICE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout
        port = int(service.stdout.readline())
        asyncio.run(run_client(port, request, 20))
        print(f"{asked.clients} clients, {asked.conversations} conversations in a request")
        for _ in range(asked.rounds):
            round_ = run_round(
                psutil.Process(service.pid),
                port,
                request,
                clients=asked.clients,
                requests=asked.requests,
            )
            asyncio.run(round_)
        service.communicate()


if __name__ == "__main__":
    main()
