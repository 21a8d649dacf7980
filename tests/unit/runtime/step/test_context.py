"""What a recipe sees: staging, figures, progress, metrics and checkpoints."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.runtime.step.checkpoint import Checkpoints
from nemotron_style.runtime.step.context import ProcessRank, StepContext, Stop
from nemotron_style.runtime.step.metrics import Metrics, read_metrics


def make_context(run_dir: Path, **seating: object) -> StepContext:
    return StepContext(run_dir=run_dir, inputs={}, outputs=("model", "log"), **seating)


def save(checkpoints: Checkpoints, step: int, text: str = "weights") -> None:
    (checkpoints.stage(step) / "weights.bin").write_text(text)
    checkpoints.commit(step)


def test_every_output_has_an_empty_directory_of_its_attempt(tmp_path: Path) -> None:
    first = make_context(tmp_path, attempt=1)
    (first.output("model").path / "half").write_text("half")
    second = make_context(tmp_path, attempt=2)
    assert list(second.output("model").path.iterdir()) == []
    assert first.output("model").path != second.output("model").path


def test_all_ranks_share_the_staging_directory(tmp_path: Path) -> None:
    ranks = [make_context(tmp_path, process=ProcessRank(rank, 2, rank)) for rank in range(2)]
    assert ranks[0].output("log").path == ranks[1].output("log").path
    assert ranks[0].checkpoints.stage(3) == ranks[1].checkpoints.stage(3)


def test_a_missing_input_names_the_near_slot(tmp_path: Path) -> None:
    context = StepContext(run_dir=tmp_path, inputs={"model": object()}, outputs=())  # type: ignore
    assert context.optional_input("data") is None
    with pytest.raises(InputError, match="did you mean 'model'"):
        context.input("modle")


def test_stopping_follows_the_signal_flag(tmp_path: Path) -> None:
    stop = Stop()
    context = make_context(tmp_path, stop=stop)
    assert not context.stopping
    stop.requested = True
    assert context.stopping


def test_progress_is_told_rarely_but_always_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context(tmp_path, attempt=4)
    for done in range(1, 101):
        context.progress(done, 100, loss=1 / done)
    shown = json.loads((tmp_path / "attempts/4/progress.json").read_text())
    assert shown == {"done": 100, "total": 100, "figures": {"loss": 0.01}}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1/100  loss=1"
    assert lines[-1] == "100/100  loss=0.01"
    assert len(lines) < 10


def test_only_the_first_rank_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = make_context(tmp_path, process=ProcessRank(1, 2, 1))
    context.say("hello")
    context.progress(1, 1)
    context.metrics.log(1, loss=2.0)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "metrics.jsonl").exists()


def test_metrics_rewind_to_a_step_and_forget_half_lines(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for step in range(1, 6):
        metrics.log(step, loss=float(step), **{"train/lr": 0.5})
    metrics.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    resumed = Metrics(tmp_path)
    resumed.rewind(3)
    resumed.log(4, loss=9.0)
    resumed.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1] == {"step": 4, "loss": 9.0}


def test_numbers_that_json_cannot_hold_are_words(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.log(1, loss=float("nan"), norm=float("inf"), count=3)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": "nan", "norm": "inf", "count": 3}
    assert "NaN" not in text


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None
    save(checkpoints, 10)
    save(checkpoints, 20)
    (checkpoints.stage(30) / "weights.bin").write_text("never committed")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 20
    assert (newest.path / "weights.bin").read_text() == "weights"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "unmark"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 10)
    save(checkpoints, 20)
    weights = tmp_path / "checkpoints/step-00000020/weights.bin"
    if damage == "flip":
        weights.write_text("wEights")
    elif damage == "truncate":
        weights.write_text("weig")
    elif damage == "remove":
        weights.unlink()
    else:
        weights.with_name("checkpoint.json").unlink()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 10


def test_old_checkpoints_go_and_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        save(checkpoints, step)
    save(checkpoints, 3, "again")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest.path / "weights.bin").read_text() == "again"


def test_what_a_dead_attempt_staged_is_discarded(tmp_path: Path) -> None:
    dead = Checkpoints(tmp_path, attempt=1)
    (dead.stage(5) / "weights.bin").write_text("half")
    alive = Checkpoints(tmp_path, attempt=2)
    mine = alive.stage(5)
    alive.discard_staged()
    assert list((tmp_path / "checkpoints").iterdir()) == [mine]


def test_ranks_other_than_the_first_commit_nothing(tmp_path: Path) -> None:
    second = Checkpoints(tmp_path, rank=1)
    (second.stage(5) / "shard").write_text("x")
    second.commit(5)
    assert second.newest() is None


def test_figures_are_plain_numbers(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    context.summarise(loss=0.5, count=3, verdict="good", nothing=None)
    context.summarise(loss=0.25)
    assert context.figures == {"loss": 0.25, "count": 3, "verdict": "good", "nothing": None}


def test_tensorboard_hides_the_steps_that_a_resume_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board is a view of the same lines, opened with the first step that is still to come."""
    shown: list[tuple[object, ...]] = []

    class Writer:
        def __init__(self, path: str, *, purge_step: int) -> None:
            shown.append((path, purge_step))

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            shown.append((tag, value, step))

        def close(self) -> None:
            shown.append(("closed",))

    board = types.SimpleNamespace(SummaryWriter=Writer)
    for name in ("torch", "torch.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    metrics = Metrics(tmp_path)
    metrics.rewind(3)
    metrics.log(4, loss=2)
    metrics.close()
    assert shown == [(str(tmp_path / "tensorboard"), 4), ("loss", 2.0, 4), ("closed",)]
