"""A Lepton workspace on the loopback, as far as jobs need one, with faults on demand.

It keeps the bodies as they came, and can run the posted command on this machine as a pod would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = "/api/v2/workspaces/ws"
TOKEN = "nvapi-S3CRET-do-not-show"
PAGE = "<html><head><style>x{}</style></head><body><h1>Bad gateway</h1></body></html>"


@dataclass
class FakeLepton:
    """``faults`` holds, by method and beginning of the path, what the next answers are instead:
    a status, ``page`` (HTML with 200), ``close``, ``close after`` (it is done, nobody is told),
    ``silent``, or ``echo`` (a refusal that repeats what was sent, token and all)."""

    runs_pods: bool = False
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    posted: list[bytes] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    stored: list[tuple[int, str]] = field(default_factory=list)
    secrets: list[str] = field(default_factory=lambda: ["HF_TOKEN"])
    pods: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)
    collectors: dict[str, list[threading.Thread]] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def clear(self) -> None:
        """As if it had just been started."""
        self.released.set()
        self.released = threading.Event()
        for kept in (self.jobs, self.posted, self.asked, self.faults, self.logs, self.stored):
            kept.clear()
        self.secrets = ["HF_TOKEN"]

    def break_next(self, method: str, path: str, *faults: str) -> None:
        self.faults[(method, path)] = list(faults)

    def fault_of(self, method: str, path: str) -> str:
        for (of, beginning), waiting in self.faults.items():
            if of == method and path.startswith(beginning) and waiting:
                return waiting.pop(0)
        return ""

    def create(self, body: bytes) -> tuple[int, Any]:
        self.posted.append(body)
        job = json.loads(body)
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"code": "Conflict", "message": f"job {name} exists"}
        job["metadata"]["created_at"] = int(time.time() * 1000)
        job["status"] = {"job_name": name, "state": "Starting", "job_history": []}
        self.jobs[name] = job
        if self.runs_pods:
            self.start_pods(name, job["spec"])
        return 201, job

    def start_pods(self, name: str, spec: dict[str, Any]) -> None:
        """One process a worker, with the variables that Lepton sets, and a log for each."""
        given = {one["name"]: one.get("value", "from-the-workspace") for one in spec["envs"]}
        started = []
        for index in range(spec["completions"]):
            seat = {"LEPTON_JOB_NAME": name, "LEPTON_JOB_WORKER_INDEX": str(index)}
            seat |= {"LEPTON_JOB_SERVICE_PREFIX": name, "LEPTON_SUBDOMAIN": f"{name}-job-svc"}
            pod = subprocess.Popen(
                spec["container"]["command"],
                env={"PATH": os.environ["PATH"], **given, **seat},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            started.append(pod)
            lines = self.logs.setdefault(f"{name}-{index}-abcde", [])
            collector = threading.Thread(target=self._collect, args=(pod, lines), daemon=True)
            collector.start()
            self.collectors.setdefault(name, []).append(collector)
        self.pods[name] = started

    @staticmethod
    def _collect(pod: subprocess.Popen[bytes], lines: list[str]) -> None:
        assert pod.stdout
        for line in pod.stdout:
            lines.append(line.decode(errors="replace"))

    def show(self, name: str) -> tuple[int, Any]:
        job = self.jobs[name]
        codes = [pod.poll() for pod in self.pods.get(name, [])]
        if codes and job["status"]["state"] not in ("Stopped", "Failed", "Completed"):
            stopping = job["spec"].get("stopped")
            if any(codes):
                self._signal(name, signal.SIGKILL)
                job["status"]["state"] = "Stopped" if stopping else "Failed"
            elif None in codes:
                job["status"]["state"] = "Stopping" if stopping else "Running"
            else:
                job["status"]["state"] = "Stopped" if stopping else "Completed"
            if None not in codes:  # whoever hears of the end finds the log whole
                for collector in self.collectors[name]:
                    collector.join(60)
        return 200, job

    def stop(self, name: str, change: dict[str, Any]) -> tuple[int, Any]:
        self.jobs[name]["spec"].update(change.get("spec", {}))
        if self.pods.get(name):
            self._signal(name, signal.SIGTERM)
        else:
            self.jobs[name]["status"]["state"] = "Stopped"
        return 200, self.jobs[name]

    def delete(self, name: str) -> tuple[int, Any]:
        self._signal(name, signal.SIGKILL)
        del self.jobs[name]
        return 200, {}

    def _signal(self, name: str, number: int) -> None:
        """To the first process of each pod, as a cluster does; killing takes the whole pod."""
        for pod in self.pods.get(name, []):
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(pod.pid, number)
                elif pod.poll() is None:
                    pod.send_signal(number)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        """Status and document, or the lines of a log."""
        parts = path.strip("/").split("/")
        if parts == ["jobs"] and method == "POST":
            return self.create(body)
        if parts[0] == "jobs" and parts[1] not in self.jobs:
            return 404, {"code": "NotFound", "message": f"there is no job {parts[1]}"}
        if parts[0] == "jobs":
            return self.answer_job(method, parts[1:], body)
        if parts[0] == "dedicated-node-groups":
            return 200, self.node_groups(parts)
        if parts[0] == "logs":
            return 200, self.recall({key: values[0] for key, values in query.items()})
        if parts[0] == "usersecrets":
            return 200, [{"name": name} for name in self.secrets]
        if parts[0] == "shapes":
            named = {"id": "gpu.8xh100-80gb", "name": "gpu.8xh100-80gb"}
            return 200, [{"metadata": named, "spec": {"name": "gpu.8xh100-80gb"}}]
        return 404, {"message": "no such place"}

    def answer_job(self, method: str, parts: list[str], body: bytes) -> Any:
        name, *rest = parts
        if rest == ["replicas"]:
            found = [one for one in self.logs if one.startswith(f"{name}-")]
            return 200, [{"id": one, "metadata": {"id": one}} for one in found]
        if rest[2:] == ["log"]:
            return 200, tuple(self.logs[rest[1]])
        if method == "PATCH":
            return self.stop(name, json.loads(body))
        return self.delete(name) if method == "DELETE" else self.show(name)

    def node_groups(self, parts: list[str]) -> Any:
        if parts[-1] == "reservations":
            return [{"metadata": {"id": "res-1"}, "spec": {}}]
        volumes = [{"from": "nfs", "name": "lustre", "size_in_gb": 1}]
        named = {"id": "ng-1", "name": "h100-pool"}
        return [{"metadata": named, "spec": {"volumes": volumes}, "status": {}}]

    def recall(self, query: dict[str, str]) -> Any:
        span = range(int(query["start"]), int(query["end"]))
        values = [[str(at), line] for at, line in self.stored if at in span]
        values = values[: int(query["limit"])]
        result = [{"stream": {}, "values": values}]
        return {"status": "success", "data": {"resultType": "streams", "result": result}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lepton: FakeLepton

    def log_message(self, *words: Any) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        lepton, address = self.lepton, urlsplit(self.path)
        path = address.path.removeprefix(ROOT)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        lepton.asked.append((self.command, path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, {"message": "who are you?"})
            return
        fault = lepton.fault_of(self.command, path)
        if fault == "silent":
            lepton.released.wait(120)
        if fault in ("close", "silent"):
            self.close_connection = True
            return
        if fault == "page":
            self.send(200, PAGE)
        elif fault == "echo":
            self.send(403, {"message": f"not for {self.headers['Authorization']}"})
        elif fault.isdigit():
            self.send(int(fault), PAGE if fault == "502" else {"message": f"fault {fault}"})
        else:
            status, told = lepton.answer(self.command, path, parse_qs(address.query), body)
            if fault == "close after":
                self.close_connection = True
                return
            self.send(status, told)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def send(self, status: int, told: Any) -> None:
        if isinstance(told, tuple):
            self.send_chunks(told)
            return
        kind = "text/html" if isinstance(told, str) else "application/json"
        data = told.encode() if isinstance(told, str) else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_chunks(self, lines: tuple[str, ...]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            data = line.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def serve(lepton: FakeLepton) -> Iterator[str]:
    """Answer on a free port; the URL of the workspace."""
    handler = type("Bound", (Handler,), {"lepton": lepton})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{ROOT}"
    finally:
        lepton.released.set()
        for name in lepton.pods:
            lepton._signal(name, signal.SIGKILL)
        server.shutdown()
        server.server_close()
