"""``runs publish``: a run that is over is told to trackers and as events; their folders say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.run.folder import RunFolder
from wandb_file import read_run
from worker_run import carry_out

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(mill: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "OPENLINEAGE_URL"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["runs", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_events_of_every_attempt_go_to_a_file(mill: Any, run: Run) -> None:
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from openlineage_schema import check_event

    words = "save_every=2", "hold_at=3", "gate=gate"
    (mill.root / "gate").touch()
    assert carry_out(mill, "mill/grind", *words)[0] == 0
    flour = mill.store.resolve("mill-grind-default")
    file = mill.root / "events.ndjson"
    code, out, err = run("publish", flour.ref, "--to", "events.ndjson", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["where"] == file.as_uri()
    start, end = [json.loads(line) for line in file.read_text().splitlines()]
    for event in (start, end):
        check_event(event)
    assert (start["eventType"], end["eventType"]) == ("START", "COMPLETE")
    assert start["eventTime"] < end["eventTime"]
    made = {each["facets"]["nemotronStyle_artifact"]["ref"] for each in end["outputs"]}
    assert flour.ref in made
    assert end["inputs"][0]["facets"]["nemotronStyle_artifact"]["ref"] == "mill-grow-default:v1"


def test_a_run_that_failed_is_published_as_such(mill: Any, run: Run) -> None:
    assert carry_out(mill, "mill/grow", "raise_at=2")[0] == 1
    assert run("publish", "latest", "--to", "events.jsonl")[0] == 0
    lines = (mill.root / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["eventType"] for line in lines] == ["START", "FAIL"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("openlineage", "needs OPENLINEAGE_URL, which is not set"),
        ("kafka://host", "cannot be published to; got 'kafka://host'"),
        ("somewhere", "allowed: mlflow, wandb, openlineage, http(s)://HOST, or a file"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/api/v1/lineage: cannot be told: "),
        ("no/folder/x.ndjson", "No such file or directory"),
    ],
)
def test_a_target_that_cannot_be_told_is_one_line(
    mill: Any, run: Run, target: str, told: str
) -> None:
    folder = fake_run(mill)
    code, out, err = run("publish", folder.run_id, "--to", target)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_a_run_under_way_is_not_published(mill: Any, run: Run) -> None:
    folder = fake_run(mill)
    assert folder.claim_attempt()
    code, _, err = run("publish", folder.run_id, "--to", "x.ndjson")
    assert code == 2
    assert "is not over yet" in err


def fake_run(mill: Any) -> RunFolder:
    """A run that was cancelled before it did anything."""
    [planned] = mill.compile("mill/grow").runs
    folder = RunFolder(planned.plan.run_dir)
    folder.reserve(planned.plan)
    attempt = folder.claim_attempt()
    assert attempt
    attempt.close("CANCELLED")
    return folder


def test_their_own_clients_read_what_was_published(
    mill: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("wandb", reason="wandb is not installed")
    code, folder = carry_out(mill, "mill/grind")
    assert code == 0
    grain, flour = (mill.store.resolve(f"mill-{name}-default") for name in ("grow", "grind"))
    for target in ("mlflow", "wandb", "mlflow"):
        code, _, err = run("publish", flour.ref, "--to", target)
        assert (code, err) == (0, "")

    client = mlflow.MlflowClient(tracking_uri=str(folder.path / "mlflow"))
    [told] = client.search_runs([client.get_experiment_by_name("mill/grind").experiment_id])
    assert (told.info.run_id, told.info.status) == (folder.trackers["mlflow"]["id"], "FINISHED")
    [read] = told.inputs.dataset_inputs
    assert json.loads(read.dataset.source) == {
        "ref": grain.ref,
        "kind": "grain",
        "digest": grain.digest,
    }
    assert (read.dataset.name, read.tags[0].value) == (grain.ref, "input")
    made = [client.get_logged_model(one.model_id) for one in told.outputs.model_outputs]
    assert [one.tags["nemotron_style.digest"] for one in made if one.model_type == "flour"] == [
        flour.digest
    ]
    assert len(made) == len((folder.outputs or {})["outputs"]), "not twice"
    assert [one.value for one in client.get_metric_history(told.info.run_id, "total")] == [
        *(1, 3, 6, 10)
    ]

    [file] = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    logged = read_run(file)
    assert logged["used"] == [
        {
            "ref": grain.ref,
            "kind": "grain",
            "digest": grain.digest,
            "url": f"nemotron-style://{grain.ref}/{grain.digest}",
        }
    ]
    assert flour.digest in [one["digest"] for one in logged["logged"]]
    assert (logged["code"], len(logged["rows"])) == (0, 4)
