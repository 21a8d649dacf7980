"""The command line with the real SDK; the workspace on the loopback runs pods on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs
from waiting import until

HERE = Path(__file__).parent
PYTHON = Path(
    os.environ.get(
        "NEMOTRON_STYLE_LEPTON_PYTHON", HERE.parents[1] / ".venv-lepton" / "bin" / "python"
    )
)
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="no environment with the Lepton SDK: `make .venv-lepton/.ready` makes one",
)

_spec = importlib.util.spec_from_file_location("lepton_server", HERE / "server.py")
server = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(server)

PROFILE = """
[cloud]
executor = "lepton"
image = "mill:1"
resource_shape = "gpu.8xh100-80gb"
node_group = "ng-1"
python = "{python}"
mounts = [{{ path = "/team", mount_path = "{root}", from = "node-nfs:lustre" }}]
secrets = ["HF_TOKEN"]
env = {{ OMP_NUM_THREADS = "1" }}

[away]
extends = "cloud"
upload = "file://{root}/bucket"
remote_store = "{root}/far"
workdir = "/"
"""
START = "import sys; from nemotron_style.runtime.cli import main; sys.exit(main())"


@pytest.fixture
def lepton() -> Iterator[Any]:
    fake = server.FakeLepton(runs_pods=True)
    with server.serve(fake) as url:
        fake.url = url
        yield fake


@pytest.fixture
def run(mill, lepton, tmp_path):
    """The command line, where the SDK is installed."""
    mill.write("env.toml", PROFILE.format(python=sys.executable, root=mill.root))
    login = {"LEPTON_WORKSPACE_ID": "ws", "LEPTON_WORKSPACE_TOKEN": server.TOKEN}
    address = {"LEPTON_WORKSPACE_URL": lepton.url, "LEPTON_CACHE_DIR": str(tmp_path / "cache")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_")}

    def start(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PYTHON, "-c", START, *words],
            env={**kept, **login, **address, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=mill.root,
        )
        assert server.TOKEN not in done.stdout + done.stderr
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return start


def newest(mill) -> RunFolder:
    return list_runs(mill.home)[0]


@pytest.mark.slow
def test_a_chain_runs_attached_and_is_reused(run, mill, lepton):
    shown = run("steps", "run", "mill/grind", "-r", "cloud", "--dry-run").stdout
    assert not lepton.asked
    done = run("steps", "run", "mill/grind", "-r", "cloud")
    assert [
        json.loads(body)["metadata"]["labels"]["nemotron-style.step"] for body in lepton.posted
    ] == [
        "mill.grow",
        "mill.grind",
    ]
    for body in lepton.posted:
        assert json.dumps(json.loads(body), indent=2, sort_keys=True) in shown
    assert RunFolder(newest(mill).path).outputs
    told = run("runs", "show", "latest", "--json").stdout
    assert '"COMPLETED"' in told
    assert "HF_TOKEN" not in (newest(mill).path / "launch.sh").read_text()
    assert len(lepton.posted) == 2
    again = run("steps", "run", "mill/grind", "-r", "cloud")
    assert len(lepton.posted) == 2
    assert done.returncode == again.returncode == 0


@pytest.mark.slow
def test_a_failure_is_told_and_the_next_attempt_goes_on(run, mill, lepton):
    done = run("steps", "run", "mill/grow", "-r", "cloud", "raise_at=3", check=False)
    assert done.returncode == 1
    assert "the mill stone broke" in done.stdout + done.stderr
    folder = newest(mill)
    assert folder.last_attempt.record["state"] == "FAILED"
    ended = folder.path / "attempts/1/exit-0"  # written by the pod after its worker's record
    until(ended.exists)
    assert ended.read_text() == "1\n"
    assert "the mill stone broke" in (folder.path / "attempts/1/log-0.txt").read_text()
    run("steps", "run", "mill/grow", "-r", "cloud", "raise_at=3", check=False)
    names = {json.loads(body)["metadata"]["name"] for body in lepton.posted}
    assert len(names) == 2
    assert "continuing from the checkpoint of step 2" in newest(mill).last_attempt.log.read_text()


@pytest.mark.slow
def test_detached_then_watched_then_cancelled(run, mill, lepton):
    gate = mill.root / "gate"
    words = ("hold_at=2", f"gate={gate}")
    run("steps", "run", "mill/grow", "-b", "cloud", *words)
    folder = newest(mill)
    until(lambda: "holding" in folder.last_attempt.log.read_text())
    assert '"RUNNING"' in run("runs", "show", "latest", "--json").stdout
    run("runs", "cancel", "latest")
    name = folder.last_attempt.job["id"]
    assert ("PATCH", f"/jobs/{name}") in lepton.asked
    run("runs", "wait", "latest", check=False)
    record = folder.last_attempt.record
    assert (record["state"], record["exit_code"]) == ("CANCELLED", 130)
    assert "stopped after step 2" in record["error"]
    log = run("runs", "logs", "latest").stdout
    assert "holding" in log


@pytest.mark.slow
def test_a_detached_chain_is_refused_before_anything(run, mill, lepton):
    done = run("steps", "run", "mill/bake", "-b", "cloud", check=False)
    assert done.returncode == 2
    assert "Lepton cannot hold a job back for it" in done.stderr
    assert lepton.posted == []
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_uploaded_job_runs_where_nothing_is_shared(run, mill, lepton):
    done = run("steps", "run", "mill/grind", "-r", "away")
    assert len(list((mill.root / "bucket").iterdir())) == 2
    far = list_runs(mill.root / "far")
    assert [folder.outputs is not None for folder in far] == [True, True]
    assert newest(mill).last_attempt.record["state"] == "COMPLETED"
    assert newest(mill).outputs is None  # it lies where this machine does not look
    for line in ("1/4  total=1\n", "4/4  total=10\n"):
        assert done.stdout.count(line) == 2, done.stdout  # by way of Lepton's log
    assert "4/4  total=10\n" in run("runs", "logs", "latest").stdout
    refused = run("runs", "rerun", "latest", check=False).stderr
    assert f"what it made is in {mill.root}/far, which this machine does not see" in refused


@pytest.mark.slow
def test_a_profile_is_tried(run, mill, lepton):
    lepton.secrets.clear()
    done = run("profiles", "check", "cloud", check=False)
    assert "the workspace has no secret 'HF_TOKEN'" in done.stdout + done.stderr
    assert lepton.posted == []
