"""The real SDK, in an environment of its own, against a workspace on the loopback.

The interpreter is ``$NEMOTRON_STYLE_LEPTON_PYTHON``, else the one of ``.venv-lepton``, which
``make .venv-lepton/.ready`` makes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.launch.lepton.job import write_body
from nemotron_style.runtime.launch.lepton.state import STATES
from nemotron_style.runtime.launch.lepton.validate import (
    CUSTOM,
    OWN,
    RESERVED_PATHS,
    RESERVED_VARIABLES,
)
from nemotron_style.runtime.run.folder import RunFolder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = Path(
    os.environ.get("NEMOTRON_STYLE_LEPTON_PYTHON", ROOT / ".venv-lepton" / "bin" / "python")
)
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="no environment with the Lepton SDK: `make .venv-lepton/.ready` makes one",
)

_spec = importlib.util.spec_from_file_location("lepton_server", HERE / "server.py")
server = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(server)


class Failed(Exception):
    """What the driver raised: ``kind`` is the name of the class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


class Driver:
    """A process with the SDK; ``seconds`` is how long it waits for an answer."""

    seconds = 60.0

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [PYTHON, HERE / "driver.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def __call__(self, call: str, **given: Any) -> Any:
        self.process.stdin.write(
            json.dumps({"call": call, "given": given, "seconds": self.seconds}) + "\n"
        )
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert server.TOKEN not in json.dumps(answer)
        if "error" in answer:
            raise Failed(answer["error"], answer["text"])
        return answer["told"]


def environment(url: str, cache: Path, *, token: str = server.TOKEN) -> dict[str, str]:
    """A login by variables; no login of whoever runs the tests is read."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_")}
    login = {"LEPTON_WORKSPACE_ID": "ws", "LEPTON_WORKSPACE_TOKEN": token}
    address = {"LEPTON_WORKSPACE_URL": url, "LEPTON_CACHE_DIR": str(cache), "NO_PROXY": "127.0.0.1"}
    return {**kept, **login, **address}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Any, str, Path]]:
    lepton = server.FakeLepton()
    with server.serve(lepton) as url:
        yield lepton, url, tmp_path_factory.mktemp("lepton-cache")


@pytest.fixture(scope="module")
def process(place) -> Iterator[Driver]:
    _, url, cache = place
    driver = Driver(environment(url, cache))
    yield driver
    driver.process.stdin.close()
    driver.process.wait(timeout=120)


@pytest.fixture
def lepton(place) -> Any:
    place[0].clear()
    return place[0]


@pytest.fixture
def drive(process, lepton) -> Driver:
    process.seconds = Driver.seconds
    return process


@pytest.fixture
def plan(plan_of, tmp_path):
    return plan_of(store=str(tmp_path / "team" / "store"))


FULL = {
    "shared_memory_mb": 65536,
    "priority": "mid-4000",
    "node_reservation": "res-1",
    "image_pull_secrets": ["ngc"],
    "custom_spec": {
        "queue_config": {"can_preempt": True},
        "container": {"ports": [{"container_port": 8080, "protocol": "TCP"}]},
        "log": {"enable_collection": False},
        "ttl_seconds_after_finished": 60,
        "time_schedule": {"start_at": 1},
        "user_security_context": {"privileged": False},
    },
}
CASES = {
    "one": {},
    "four": {"resources": {"nodes": 4, "processes": 8}, "launch": "torchrun"},
    "full": {"site": FULL, "secrets": ("HF_TOKEN",)},
    "hostile": {
        "store": '/mnt/sha red/it\'s "here"; touch X #/störe',
        "env": {"NASTY": "a b'c\"d $(touch X) `touch X`; # ünï, \\ \n next"},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_sdk_would_post_our_very_body(drive, plan_of, launcher, case):
    body = launcher.compile(plan_of(**CASES[case])).body
    assert write_body(drive("serialise", body=body)) == write_body(body)


def test_an_uploaded_job_is_the_same_for_the_sdk(drive, plan_of, launcher):
    plan = plan_of(site={"upload": "s3://b/j"}, records="/home/me/store", env={"A": "1"})
    body = launcher.compile(plan).body
    assert write_body(drive("serialise", body=body)) == write_body(body)


def test_our_rules_are_those_of_the_sdk(drive):
    rules = drive("rules")
    assert rules["paths"] == sorted(RESERVED_PATHS)
    assert rules["variables"] == sorted(RESERVED_VARIABLES)
    assert rules["longest_name"] == 36
    assert set(rules["states"]) - set(STATES) == {"Archived", "UNK"}
    known = {name.partition(".")[0] for name in OWN} | set(CUSTOM)
    assert known == set(rules["fields"].pop(""))
    for name, fields in rules["fields"].items():
        own = {key.partition(".")[2] for key in OWN if key.startswith(f"{name}.")}
        assert own | set(CUSTOM[name] or ()) == set(fields), name


def test_what_is_posted_is_what_the_dry_run_shows(drive, lepton, plan, launcher):
    shown = launcher.compile(plan).files["lepton.json"]
    name = drive("submit", plan=plan.to_json())
    (posted,) = lepton.posted
    assert write_body(json.loads(posted)) == shown
    assert (plan.run_dir / "lepton.json").read_text(encoding="utf-8") == shown
    job = {"executor": "lepton", "id": name, "workspace": "ws at 127.0.0.1"}
    assert RunFolder(plan.run_dir).last_attempt.job == job
    assert [call for call in lepton.asked if call[0] != "GET"] == [("POST", "/jobs")]


def test_a_job_from_its_post_to_its_deletion(drive, lepton, plan):
    name = drive("submit", plan=plan.to_json())
    assert drive("state", run_dir=str(plan.run_dir))["state"] == "PENDING"
    lepton.jobs[name]["status"]["state"] = "Running"
    assert drive("state", run_dir=str(plan.run_dir))["state"] == "RUNNING"
    lepton.jobs[name]["status"]["state"] = "a new word"
    told = drive("state", run_dir=str(plan.run_dir))
    assert (told["state"], told["reason"]) == ("PENDING", "Lepton calls it 'UNK'")
    drive("cancel", run_dir=str(plan.run_dir))
    assert lepton.jobs[name]["spec"]["stopped"] is True
    assert ("PATCH", f"/jobs/{name}") in lepton.asked
    assert drive("state", run_dir=str(plan.run_dir))["state"] == "CANCELLED"
    drive("cancel", run_dir=str(plan.run_dir), force=True)
    assert lepton.jobs == {}
    assert lepton.asked[-1] == ("DELETE", f"/jobs/{name}")


def test_what_the_workspace_tells(drive, lepton, plan):
    name = drive("submit", plan=plan.to_json())
    lepton.jobs[name]["status"] |= {"completion_time": 1_700_000_000, "succeeded": 1}
    found = drive("find", name=name)
    assert (found["state"], found["ended"], found["succeeded"]) == ("Starting", 1.7e9, 1)
    assert abs(found["created"] - time.time()) < 60
    assert found["labels"]["nemotron-style.run"] == plan.run_id
    lepton.logs = {f"{name}-0-abcde": ["one\n", "two ü\n"]}
    assert drive("replicas", name=name) == [f"{name}-0-abcde"]
    assert "".join(drive("follow", name=name, replica=f"{name}-0-abcde")) == "one\ntwo ü\n"
    lepton.stored = [(2_000_000_000, "b"), (1_500_000_000, "a\n"), (9_000_000_000, "c")]
    told = drive("recall", name=name, replica=None, since=1, until=5)
    assert told == "a\nb\n"
    assert drive("node_groups") == [
        {"id": "ng-1", "name": "h100-pool", "volumes": ["node-nfs:lustre"]}
    ]
    assert drive("shapes", node_group="ng-1") == ["gpu.8xh100-80gb"]
    assert drive("secrets") == ["HF_TOKEN"]
    assert drive("reservations", node_group="ng-1") == ["res-1"]


def test_a_long_stored_log_comes_whole(drive, lepton, plan):
    name = drive("submit", plan=plan.to_json())
    lepton.stored = [(1_000_000_000 + number, f"line {number}") for number in range(12_345)]
    lines = drive("recall", name=name, replica=None, since=1, until=5).splitlines()
    assert lines == [f"line {number}" for number in range(12_345)]


@pytest.mark.parametrize(
    ("faults", "kind", "told"),
    [
        (["400"], "Refused", "HTTP 400 from 127.0.0.1:{port}: fault 400"),
        (["403"], "Refused", "HTTP 403 from 127.0.0.1:{port}: fault 403"),
        (["echo"], "Refused", "HTTP 403 from 127.0.0.1:{port}: not for Bearer ***"),
        (["409"], "Taken", "HTTP 409"),
        (["429"], "Refused", "HTTP 429"),
        (["500"], "Unclear", "HTTP 500 from 127.0.0.1:{port}: fault 500"),
        (["502"], "Unclear", "HTTP 502 from 127.0.0.1:{port}: Bad gateway"),
        (["page"], "Unclear", "127.0.0.1:{port} answered with something that makes no sense"),
        (["close"], "Unclear", "the connection to 127.0.0.1:{port} broke"),
        (["silent"], "Unclear", "127.0.0.1:{port} did not answer in time"),
    ],
)
def test_faults_in_words(drive, lepton, place, plan, launcher, faults, kind, told):
    lepton.break_next("POST", "/jobs", *faults)
    drive.seconds = 1.0 if "silent" in faults else 60.0
    with pytest.raises(Failed) as caught:
        drive("create", body=launcher.compile(plan).body)
    port = place[1].split(":")[2].partition("/")[0]
    assert (caught.value.kind, caught.value.text.partition(": ")[0]) == (kind, "the job")
    assert told.format(port=port) in caught.value.text
    assert "<" not in caught.value.text


@pytest.mark.parametrize("fault", ["400", "403", "echo", "500", "502", "page", "close", "silent"])
def test_a_submission_that_fails_is_closed_with_the_reason(drive, lepton, plan, fault):
    lepton.break_next("POST", "/jobs", fault)
    drive.seconds = 1.0 if fault == "silent" else 60.0
    with pytest.raises(Failed) as caught:
        drive("submit", plan=plan.to_json())
    assert caught.value.kind == "StepFailed"
    assert "\n" not in caught.value.text
    record = RunFolder(plan.run_dir).last_attempt.record
    assert (record["state"], record["error"]) == ("FAILED", caught.value.text)
    assert lepton.jobs == {}
    for path in plan.run_dir.rglob("*"):
        assert path.is_dir() or server.TOKEN not in path.read_text(encoding="utf-8")


def test_a_job_that_was_made_though_nobody_said_so_is_found(drive, lepton, plan):
    lepton.break_next("POST", "/jobs", "close after")
    name = drive("submit", plan=plan.to_json())
    assert len(lepton.posted) == 1
    assert RunFolder(plan.run_dir).last_attempt.job["id"] == name


def test_a_name_that_is_taken_by_another_is_said(drive, lepton, plan, launcher):
    request = launcher.compile(plan)
    strange = json.loads(json.dumps(request.body))
    strange["metadata"]["labels"] = {}
    lepton.create(json.dumps(strange).encode())
    with pytest.raises(Failed, match="has a job of this name already, and it is another one"):
        drive("submit", plan=plan.to_json())


@pytest.mark.parametrize("fault", ["401", "500", "502", "page", "close", "silent"])
def test_a_state_survives_a_workspace_that_is_ill(drive, lepton, plan, fault):
    drive("submit", plan=plan.to_json())
    lepton.break_next("GET", "/jobs/", fault)
    drive.seconds = 1.0 if fault == "silent" else 60.0
    told = drive("state", run_dir=str(plan.run_dir))
    assert told["state"] == "PENDING"
    assert told["reason"].startswith("the last that is known; job sft-chat-")


def test_a_job_that_is_gone_is_lost(drive, lepton, plan):
    drive("submit", plan=plan.to_json())
    lepton.jobs.clear()
    assert drive("state", run_dir=str(plan.run_dir))["state"] == "LOST"


def test_check_against_the_real_client(drive, plan_of):
    site = {"node_reservation": "res-1"}
    assert drive("check", plan=plan_of(site=site, secrets=("HF_TOKEN",)).to_json()) == []
    told = drive("check", plan=plan_of(site={"node_group": "h100-pool"}).to_json())
    assert len(told) == 1
    assert 'write node_group = "ng-1"' in told[0]


def test_nobody_there_and_nobody_logged_in(place, tmp_path, plan):
    _, url, cache = place
    driver = Driver(environment("http://127.0.0.1:9/api/v2/workspaces/ws", cache))
    with pytest.raises(Failed, match=r"nobody answers at 127.0.0.1:9; nothing was posted"):
        driver("submit", plan=plan.to_json())
    (problem,) = driver("check", plan=plan.to_json())
    assert "Lepton was not reached: node groups: nobody answers at 127.0.0.1:9" in problem
    driver.process.stdin.close()
    without = environment(url, tmp_path / "empty")
    for name in ("LEPTON_WORKSPACE_ID", "LEPTON_WORKSPACE_TOKEN"):
        del without[name]
    driver = Driver(without)
    with pytest.raises(Failed, match=r"not logged in to a Lepton workspace; `lep login`, or set"):
        driver("submit", plan=plan.to_json(), attempt=2)
    driver.process.stdin.close()
    driver = Driver(environment(url, cache, token="wrong"))
    with pytest.raises(Failed, match=r"Lepton refused it: the job: HTTP 401.*who are you"):
        driver("submit", plan=plan.to_json(), attempt=2)
    driver.process.stdin.close()
