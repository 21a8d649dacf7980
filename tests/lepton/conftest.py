"""Plans for Lepton, and a workspace that lives in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.launch.lepton.client import Absent, NodeGroup, RemoteJob, Taken
from nemotron_style.runtime.launch.lepton.launcher import LeptonLauncher
from nemotron_style.runtime.run.plan import Plan
from plans import build_plan

SITE = {"resource_shape": "gpu.8xh100-80gb", "node_group": "ng-1"}


def make_plan(store: str = "/mnt/shared/store", **changes: Any) -> Plan:
    """A plan of one machine whose store lies on a mount."""
    mount = {"source": "/team", "target": str(Path(store).parent), "volume": "node-nfs:lustre"}
    site = {**SITE, **changes.pop("site", {})}
    usual = {
        "python": "python3",
        "image": "nvcr.io/nvidia/nemo:25.04",
        "mounts": (mount,),
        "profile": "cloud",
        "executor": "lepton",
        "site": {key: value for key, value in site.items() if value is not None},
        "workdir": store,
    }
    return build_plan(usual, store=store, **changes)


@dataclass
class MemoryWorkspace:
    """Keeps what is posted. ``raising`` holds errors that the next calls of a name give."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    raising: dict[str, list[Exception | None]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    state: str = "Starting"
    created: float | None = None
    live: dict[str, list[str]] = field(default_factory=dict)
    kept: str = ""
    groups: tuple[NodeGroup, ...] = (
        NodeGroup("ng-1", "h100-pool", frozenset({"node-nfs:lustre"})),
    )
    known_shapes: frozenset[str] = frozenset({"gpu.8xh100-80gb", "cpu.small"})
    known_secrets: frozenset[str] = frozenset({"HF_TOKEN"})
    loses_answer: bool = False
    name: str = "ws at lepton"

    def _called(self, call: str, subject: str = "") -> None:
        self.calls.append((call, subject))
        waiting = self.raising.get(call, [])
        error = waiting.pop(0) if waiting else None
        if error:
            raise error

    def create(self, body: Mapping[str, Any]) -> None:
        name = body["metadata"]["name"]
        if name in self.jobs:
            raise Taken(f"job {name}: exists")
        if self.loses_answer:
            self.jobs[name] = dict(body)
        self._called("create", name)
        self.jobs[name] = dict(body)

    def find(self, name: str) -> RemoteJob:
        self._called("find", name)
        if name not in self.jobs:
            raise Absent(f"job {name}: no such job")
        labels = self.jobs[name]["metadata"]["labels"]
        return RemoteJob(name, self.state, labels=labels, created=self.created)

    def replicas(self, name: str) -> list[str]:
        self._called("replicas", name)
        return sorted(self.live)

    def follow(self, name: str, replica: str) -> Iterator[str]:
        self._called("follow", replica)
        yield from self.live[replica]

    def recall(self, name: str, replica: str | None, *, since: float, until: float) -> str:
        self._called("recall", name)
        return self.kept

    def stop(self, name: str) -> None:
        self._called("stop", name)
        self.state = "Stopped"

    def delete(self, name: str) -> None:
        self._called("delete", name)
        self.jobs.pop(name, None)

    def node_groups(self) -> list[NodeGroup]:
        self._called("node_groups")
        return list(self.groups)

    def shapes(self, node_group: str | None) -> set[str]:
        self._called("shapes")
        return set(self.known_shapes)

    def secrets(self) -> set[str]:
        self._called("secrets")
        return set(self.known_secrets)

    def reservations(self, node_group: str) -> set[str]:
        self._called("reservations")
        return {"res-1"}


@pytest.fixture
def plan_of() -> Callable[..., Plan]:
    return make_plan


@pytest.fixture
def workspace() -> MemoryWorkspace:
    return MemoryWorkspace()


@pytest.fixture
def launcher(workspace: MemoryWorkspace, tmp_path: Path) -> LeptonLauncher:
    """One that posts to the workspace in memory, and sends one file of code."""
    code = tmp_path / "recipe.py"
    code.write_text("print('milling')\n", encoding="utf-8")
    return LeptonLauncher(
        connect=lambda: workspace, sources=lambda *objects: [("milling/recipe.py", code)]
    )
