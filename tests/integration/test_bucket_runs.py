"""Runs whose store is in a bucket of S3: killed, resumed, verified, reused from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import s3_server
from nemotron_style.runtime.cli import main
from waiting import until

pytestmark = pytest.mark.skipif(bool(s3_server.REASON), reason=s3_server.REASON)


@pytest.fixture(scope="module")
def server() -> Iterator[s3_server.S3Server]:
    with s3_server.running_s3() as running:
        yield running


@pytest.fixture
def bucket(
    server: s3_server.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> s3_server.S3Server:
    """The environment of a machine whose store is in a new bucket."""
    name = f"b-{uuid.uuid4().hex}"
    server.make_bucket(name)
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", f"s3://{name}/team")
    monkeypatch.setenv("NEMOTRON_STYLE_SCRATCH", str(tmp_path / "scratch"))
    return server


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON document that a command prints."""
    capsys.readouterr()
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_a_run_is_killed_resumed_verified_and_reused_from_elsewhere(
    mill: Any,
    bucket: s3_server.S3Server,
    cli: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gate = tmp_path / "gate"
    words = ["steps", "run", "mill/grind", "hold_at=3", "save_every=1", f"gate={gate}"]
    running = subprocess.Popen(
        cli(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    [log] = until(lambda: find_logs(tmp_path, "holding"))
    owner = json.loads((log.parent / "owner.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    said = running.communicate(timeout=180)[0]
    assert running.returncode == 1, said
    gate.touch()
    shown = ask(capsys, *words, "-d")
    assert [each["decision"] for each in shown["runs"]] == ["reuse", "resume"]
    assert shown["runs"][-1]["plan"]["root"] == os.environ["NEMOTRON_STYLE_HOME"]
    done = ask(capsys, *words)
    assert done["runs"][-1]["outputs"]["sack"]["ref"] == "mill-grind-default:v1"
    record = ask(capsys, "artifacts", "show", "mill-grind-default")
    assert [each["number"] for each in record["producer"]["attempts"]] == [1, 2]
    assert ask(capsys, "artifacts", "verify")["ok"]

    # Another machine: no runs, no copies, another folder.
    monkeypatch.setenv("NEMOTRON_STYLE_SCRATCH", str(tmp_path / "elsewhere"))
    shutil.copytree(mill.root, tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    again = ask(capsys, *words)
    assert [each["decision"] for each in again["runs"]] == ["reuse"] * 2
    assert again["runs"][-1]["outputs"] == done["runs"][-1]["outputs"]
    assert not list((tmp_path / "elsewhere").rglob("sack.txt"))
    assert main(["steps", "run", "mill/bake", "-c", "bare", "-i", "input=mill-grind-default"]) == 0
    assert len(list((tmp_path / "elsewhere").rglob("cache/*/files/sack.txt"))) == 2
    assert ask(capsys, "artifacts", "lineage", "mill-bake-bare")["edges"]
    repeated = ask(capsys, "runs", "rerun", "mill-grind-default")
    assert repeated["outputs"]["sack"]["verdict"] == "bit-identical"
    assert main(["artifacts", "rm", "mill-bake-bare", "--yes"]) == 0
    assert main(["artifacts", "gc"]) == 0
    assert ask(capsys, "artifacts", "verify")["ok"]


def find_logs(folder: Path, text: str) -> Sequence[Path]:
    logs = folder.glob("scratch/*/runs/*/attempts/[0-9]*/log-0.txt")
    return [log for log in logs if text in log.read_text()]


def test_openlineage_has_what_a_run_in_a_bucket_read_and_made(
    mill: Any,
    bucket: s3_server.S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = tmp_path / "events.ndjson"
    monkeypatch.setenv("OPENLINEAGE_URL", events.as_uri())
    assert main(["steps", "run", "mill/grind"]) == 0
    told = [json.loads(line) for line in events.read_text().splitlines()]
    [end] = [each for each in told if each["eventType"] == "COMPLETE" and each["inputs"]]
    assert [each["name"] for each in end["inputs"]] == ["mill-grow-default"]
    assert all("outputStatistics" in each["outputFacets"] for each in end["outputs"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"NEMOTRON_STYLE_HOME": "s3://no-such-bucket-here/x"}, "there is no such bucket"),
        ({"NEMOTRON_STYLE_HOME": "gs://bucket"}, "a store cannot be there"),
        ({"NEMOTRON_STYLE_HOME": "s3://key:word@bucket/x"}, "a password inside a URL"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_one_line_before_anything_runs(
    changed: dict[str, str],
    message: str,
    mill: Any,
    bucket: s3_server.S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    assert main(["steps", "run", "mill/grow"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert "word@" not in line
