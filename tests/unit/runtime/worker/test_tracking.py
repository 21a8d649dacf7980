"""Trackers are told params, metrics and artifacts of a run once, and cannot end it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from nemotron_style.runtime.cli.summary import list_results
from nemotron_style.runtime.config.model import Tracker
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.step.context import Stop
from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.runtime.worker import main as worker_main
from nemotron_style.runtime.worker import tracking
from nemotron_style.runtime.worker.tracked_run import TrackedArtifact
from nemotron_style.runtime.worker.wandb_client import is_online
from waiting import until
from wandb_file import read_run
from worker_run import carry_out

KEY = "0123456789abcdef0123456789abcdef01234567"


class Ledger:
    """A tracker in memory: ``rows`` are all that it was told, by any attempt."""

    rows: ClassVar[list[tuple[int, Mapping[str, float]]]] = []
    endings: ClassVar[list[tuple[str, Mapping[str, str]]]] = []
    begun: ClassVar[list[Mapping[str, str]]] = []
    outputs: ClassVar[Mapping[str, TrackedArtifact]] = {}
    run: Any = None
    fails_at, fails_to_end, failed = -1, 0, 0
    open: ClassVar[dict[str, str]] = {}

    def __init__(self, asked: Tracker) -> None:
        self.asked = asked

    def begin(self, run: Any, earlier: Mapping[str, str]) -> Mapping[str, str]:
        Ledger.run = run
        Ledger.begun.append(earlier)
        return {"id": "ledger-1", "where": "in memory", **Ledger.open}

    def log(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        for step, figures in rows:
            if step == Ledger.fails_at:
                Ledger.failed += 1
                raise ConnectionError("no answer\nfrom a server")
            Ledger.rows.append((step, figures))

    def end(
        self, status: str, tags: Mapping[str, str], outputs: Mapping[str, TrackedArtifact]
    ) -> None:
        if Ledger.fails_to_end:
            Ledger.fails_to_end -= 1
            raise ConnectionError("no answer")
        Ledger.endings.append((status, tags))
        Ledger.outputs = outputs


@pytest.fixture
def ledger(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The mill with a tracker that writes down what it is told, in place of MLflow."""
    Ledger.rows, Ledger.endings, Ledger.begun, Ledger.fails_at = [], [], [], -1
    Ledger.fails_to_end = Ledger.failed = 0
    Ledger.open = {}
    monkeypatch.setattr(tracking, "CLIENTS", {"mlflow": Ledger})
    return tracked


def test_a_tracker_gets_the_config_the_inputs_every_metric_and_the_outputs(ledger: Any) -> None:
    code, folder = carry_out(ledger, "mill/grind", "trackers_named=[mlflow]")
    assert code == 0
    grain, flour = (ledger.store.resolve(f"mill-{name}-default") for name in ("grow", "grind"))
    assert Ledger.run.params["mill.speed"] == "1"
    assert Ledger.run.tags == {
        "nemotron_style.run_id": folder.run_id,
        "nemotron_style.step": "mill/grind",
        "nemotron_style.input.input": grain.ref,
        "nemotron_style.input.input.digest": grain.digest,
    }
    assert Ledger.rows == [(1, {"total": 1.0}), (2, {"total": 3.0}), *Ledger.rows[2:]]
    assert [step for step, _ in Ledger.rows] == [1, 2, 3, 4]
    [(status, tags)] = Ledger.endings
    assert (status, tags["nemotron_style.status"]) == ("finished", "finished")
    assert tags["nemotron_style.output.sack"] == flour.ref
    assert tags["nemotron_style.output.sack.digest"] == flour.digest
    assert tags["nemotron_style.output.sack"] == Ledger.outputs["sack"].ref
    assert Ledger.run.inputs["input"].kind == "grain"
    assert folder.trackers == {"mlflow": {"id": "ledger-1", "where": "in memory"}}
    assert flour.record.producer
    assert flour.record.producer.trackers == {"mlflow": "ledger-1"}
    assert ("MLflow", "run ledger-1, in memory") in list_results(folder, [flour.ref])


def test_an_attempt_that_goes_on_tells_the_same_run_only_what_it_lacks(ledger: Any) -> None:
    words = "save_every=2", "raise_at=3", "trackers_named=[mlflow]"
    code, folder = carry_out(ledger, "mill/grow", *words)
    assert code == 1
    assert [step for step, _ in Ledger.rows] == [1, 2, 3]
    [(status, tags)] = Ledger.endings
    assert (status, "mill stone broke" in tags["nemotron_style.error"]) == ("failed", True)
    # It begins from the state of step 2, does step 3 again, and fails once more.
    worker_main.main([str(folder.path / "plan.json")])
    assert [line["step"] for line in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3]
    assert [step for step, _ in Ledger.rows] == [1, 2, 3]
    assert [one["id"] for one in Ledger.begun] == ["", "ledger-1"]


def test_a_run_that_is_told_to_stop_was_interrupted_and_then_finished(
    ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop(requested=True)
    monkeypatch.setattr(worker_main, "catch_signals", lambda: stop)
    carry_out(ledger, "mill/grow", "trackers_named=[mlflow]")
    stop.requested = False
    carry_out(ledger, "mill/grow", "trackers_named=[mlflow]")
    assert [status for status, _ in Ledger.endings] == ["interrupted", "finished"]
    assert [step for step, _ in Ledger.rows] == [1, 2, 3, 4]


def test_what_a_kill_left_in_an_open_file_is_told_again(
    ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger.open = {"open": "a file"}
    words = "raise_at=3", "trackers_named=[mlflow]"
    with monkeypatch.context() as killed:
        killed.setattr(tracking.Tracking, "end", lambda self, status: None)
        _, folder = carry_out(ledger, "mill/grow", *words)
    until(lambda: len(Ledger.rows) == 3)
    assert worker_main.main([str(folder.path / "plan.json")]) == 1
    assert [step for step, _ in Ledger.rows] == [1, 2, 3, 1, 2, 3]
    assert [one["open"] for one in Ledger.begun] == ["", "a file"]
    worker_main.main([str(folder.path / "plan.json")])
    assert len(Ledger.rows) == 6, "the second one was closed"


def test_a_tracker_that_fails_costs_a_warning_and_is_brought_up_to_date_at_the_end(
    ledger: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger.fails_at = 2
    end = tracking.Tracking.end

    def recover(self: Any, status: str) -> None:
        until(lambda: Ledger.failed)  # its thread may be behind
        Ledger.fails_at = -1
        end(self, status)

    monkeypatch.setattr(tracking.Tracking, "end", recover)
    code, _ = carry_out(ledger, "mill/grow", "trackers_named=[mlflow]")
    assert code == 0
    assert sorted({step for step, _ in Ledger.rows}) == [1, 2, 3, 4]
    assert Ledger.endings[-1][0] == "finished"
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "MLflow is not told" in warnings[0]
    assert "ConnectionError: no answer;" in warnings[0]


def test_a_tracker_that_never_answers_ends_nothing(ledger: Any) -> None:
    Ledger.fails_at = 2
    assert carry_out(ledger, "mill/grow", "trackers_named=[mlflow]")[0] == 0
    assert Ledger.endings == []


def test_a_tracker_that_fails_at_the_very_end_is_told_once_more(ledger: Any) -> None:
    Ledger.fails_to_end = 1
    assert carry_out(ledger, "mill/grow", "trackers_named=[mlflow]")[0] == 0
    assert [status for status, _ in Ledger.endings] == ["finished"]


def test_metrics_that_are_no_numbers_and_several_lines_of_a_step_arrive() -> None:
    sent = {"loss": 2}
    lines = [
        {"step": 2, "loss": 1.0},
        {"step": 2, "validation_loss": "nan"},
        {"step": 3, "loss": 1},
    ]
    [(two, figures), three] = tracking.take_new(lines, sent)
    assert (two, list(figures), three) == (2, ["validation_loss"], (3, {"loss": 1.0}))
    assert sent == {"loss": 3, "validation_loss": 2}


def test_a_missing_package_and_a_missing_key_are_refused_while_planning(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    gone = ("mlflow", "wandb")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in gone else find_spec(name)
    )
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UsageError) as caught:
        tracked.compile("mill/grow", "trackers_named=[mlflow,wandb]")
    told = str(caught.value)
    for words in (
        "nemotron-style[mlflow]",
        "nemotron-style[wandb]",
        "WANDB_API_KEY",
        "trackers_named",
    ):
        assert words in told


def test_the_service_is_asked_only_with_both_its_mode_and_a_key() -> None:
    assert not is_online({"WANDB_API_KEY": KEY})
    assert not is_online({"WANDB_MODE": "online"})
    assert is_online({"WANDB_MODE": "online", "WANDB_API_KEY": KEY})


def test_their_own_clients_read_an_interrupted_and_resumed_run(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    stop = Stop(requested=True)
    monkeypatch.setattr(worker_main, "catch_signals", lambda: stop)
    code, folder = carry_out(tracked, "mill/grow", "trackers_named=[mlflow,wandb]")
    assert code == 130
    client = mlflow.MlflowClient(tracking_uri=str(folder.path / "mlflow"))
    assert client.get_run(folder.trackers["mlflow"]["id"]).info.status == "KILLED"
    stop.requested = False
    before = folder.trackers
    code, folder = carry_out(tracked, "mill/grow", "trackers_named=[mlflow,wandb]")
    assert (code, folder.trackers) == (0, before)
    sack = tracked.store.resolve("mill-grow-default")

    [experiment] = [one for one in client.search_experiments() if one.name == "mill"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (before["mlflow"]["id"], "FINISHED")
    assert run.info.run_name == folder.run_id
    assert run.data.params["mill.speed"] == "1"
    assert run.data.tags["nemotron_style.output.sack"] == sack.ref
    assert run.data.tags["nemotron_style.output.sack.digest"] == sack.digest
    assert run.data.tags["team"] == "bakers"
    models = [client.get_logged_model(one.model_id) for one in run.outputs.model_outputs]
    made = {each.tags["nemotron_style.slot"]: each for each in models}["sack"]
    assert made.tags["nemotron_style.digest"] == sack.digest
    assert (made.model_type, made.source_run_id) == ("grain", run.info.run_id)
    history = client.get_metric_history(run.info.run_id, "total")
    assert [(one.step, one.value) for one in history] == [(1, 1), (2, 3), (3, 6), (4, 10)]

    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    first, second = map(read_run, files)
    assert {first["id"], second["id"]} == {before["wandb"]["id"]}
    assert (first["code"], second["code"], first["project"]) == (130, 0, "mill")
    assert first["rows"] == [{"step": 1, "total": 1}]
    assert [row["total"] for row in second["rows"]] == [3, 6, 10]
    assert first["config"]["mill.speed"] == "1"
    assert first["config"]["nemotron_style.step"] == "mill/grow"
    assert second["config"]["nemotron_style.output.sack"] == sack.ref
    assert {one["ref"] for one in second["logged"]} >= {sack.ref}
    assert second["used"] == []
    for path in folder.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
