"""``reward/serve`` as a run: planned, started, asked, attached to, stopped."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from listening import addresses_of, find_listener
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.process import find_marked
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.steps.blocks.reward.client import RewardClient, RewardUnavailable
from waiting import until

Capture = pytest.CaptureFixture[str]
SECONDS_TO_WAIT = 180

# Stands in for the model's module, so that no training stack is loaded and scores are known.
MODEL = """
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Scored:
    score: float
    attributes: dict


@dataclass(frozen=True)
class RewardModel:
    factor: float
    outputs: tuple = ("length",)
    max_tokens: int = 64

    @classmethod
    def load(cls, path):
        return cls(float((Path(path) / "factor.txt").read_text()))

    def score(self, conversations, *, batch_tokens):
        assert batch_tokens == 512
        lengths = [float(len(one[-1]["content"])) for one in conversations]
        return [Scored(self.factor * length, {"length": length}) for length in lengths]
"""
STAND_IN = """
import sys

sys.path.insert(0, {folder!r})
import model_that_counts

sys.modules["nemotron_style.steps.blocks.reward.model"] = model_that_counts
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reward model to adopt, in a project of its own."""
    project = tmp_path / "project"
    stand_in = tmp_path / "stand_in"
    (project / "model").mkdir(parents=True)
    stand_in.mkdir()
    (project / "env.toml").write_text("")
    (project / "model" / "factor.txt").write_text("0.5")
    for name in ("config.json", "model.safetensors", "reward_config.json"):  # by which it is known
        (project / "model" / name).touch()
    (stand_in / "model_that_counts.py").write_text(MODEL)
    (stand_in / "sitecustomize.py").write_text(STAND_IN.format(folder=str(stand_in)))
    path = os.pathsep.join([str(stand_in), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    for name in ("NEMOTRON_ENV_FILE", "NEMOTRON_STYLE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project)
    return project / "model"


def words(model: Path, *more: str) -> list[str]:
    return ["steps", "run", "reward/serve", "-i", f"model={model}", *more]


def start(capsys: Capture, model: Path, *more: str) -> tuple[dict[str, Any], RunFolder]:
    capsys.readouterr()
    assert main([*words(model, "port=0", "batch_tokens=512", *more), "-b", "local", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    return run, RunFolder(Path(run["path"]))


def find(folder: RunFolder) -> dict[str, Any]:
    """What the service tells of itself once it is there; its log where it ended instead."""

    def look() -> Any:
        assert not read_status(folder).is_final, folder.last_attempt.log.read_text()
        path = folder.path / "endpoint.json"
        return json.loads(path.read_text()) if path.is_file() else None

    return until(look)


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("config", ["default", "tiny"])
def test_a_dry_run_shows_the_service_and_writes_nothing(
    model: Path, capsys: Capture, config: str
) -> None:
    assert main([*words(model, "port=5556"), "-c", config, "-d"]) == 0
    shown = capsys.readouterr().out
    assert f"run     reward/serve ({config}): first run of this step" in shown
    assert "input     model: reward_model  sha256:" in shown
    assert "  port: 5556" in shown
    assert "output " not in shown
    assert not (model.parent / ".nemotron-style").exists()


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("host=0.0.0.0", "name the environment variable that holds it in token_env"),
        ("port=70000", "65535"),
        ("token_env='a b'", "token_env"),
        ("batching.max_wait=5", "max_wait_ms"),
    ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_runs(
    model: Path, capsys: Capture, override: str, what: str
) -> None:
    assert main([*words(model, override), "-d"]) == 2
    assert what in capsys.readouterr().err


def test_it_answers_is_attached_to_and_ends_completed(model: Path, capsys: Capture) -> None:
    first, folder = start(capsys, model)
    told = find(folder)
    assert told["host"] == "127.0.0.1"
    assert told["port"] > 0
    assert addresses_of(find_listener(told["port"])) == {(told["host"], told["port"])}
    with RewardClient(told["url"]) as reward:
        health = reward.wait_ready(SECONDS_TO_WAIT)
        assert (health.model, health.outputs) == (told["model"], ("length",))
        scores = reward.score([answer("four"), answer("sixsix")])
        assert [(one.score, one.attributes) for one in scores] == [
            (2.0, {"length": 4.0}),
            (3.0, {"length": 6.0}),
        ]
        again, same = start(capsys, model)
        assert (first["decision"], again["decision"]) == ("run", "attach")
        assert same.run_id == folder.run_id
        assert main(["runs", "cancel", folder.run_id]) == 0
        assert read_status(folder).state == "COMPLETED"
        with pytest.raises(RewardUnavailable):
            reward.wait_ready(0.2)
    assert not (folder.path / "endpoint.json").exists()
    assert folder.outputs["figures"] == {
        "conversations": 2,
        "batches": 1,
        "errors": 0,
        "all_answered": True,
    }
    log = folder.last_attempt.log.read_text()
    assert f"ready at {told['url']}, scores of length" in log
    assert "stopped after 2 conversations and 0 errors" in log

    third, other = start(capsys, model)
    assert (third["decision"], other.run_id == folder.run_id) == ("run", False)
    find(other)
    assert main(["runs", "cancel", other.run_id]) == 0
    assert read_status(other).state == "COMPLETED"


def test_a_port_that_is_taken_is_a_message_and_no_traceback(model: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*words(model, f"port={port}", "batch_tokens=512")]) == 2
    shown = "".join(capsys.readouterr())
    assert f"cannot listen at 127.0.0.1, port {port}" in shown
    assert "Traceback" not in shown


def test_a_token_that_is_not_there_is_a_message(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RM_TOKEN", raising=False)
    assert main([*words(model, "port=0", "host=0.0.0.0", "token_env=RM_TOKEN")]) == 2
    assert "the variable RM_TOKEN is not in the environment" in "".join(capsys.readouterr())


def test_a_token_opens_it_and_stands_nowhere(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RM_TOKEN", "open-sesame-4711")
    _, folder = start(capsys, model, "token_env=RM_TOKEN")
    told = find(folder)
    with RewardClient(told["url"], token="open-sesame-4711") as reward:
        reward.wait_ready(SECONDS_TO_WAIT)
        assert reward.score([answer("ab")])[0].score == 1.0
    with RewardClient(told["url"]) as reward, pytest.raises(RewardUnavailable, match="token"):
        reward.wait_ready(SECONDS_TO_WAIT)
    assert main(["runs", "cancel", folder.run_id]) == 0
    until(lambda: not find_marked(folder.last_attempt.mark))  # who writes no more
    kept = [path for path in folder.path.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"sesame" in path.read_bytes()]
