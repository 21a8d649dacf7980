"""Which checkpoints are whole, which is the best, and what a crash leaves of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import InputError
from nemotron_style.steps.rl.rlhf.nemo_rl.job.checkpoints import (
    clear_leftovers,
    find_best,
    read_checkpoints,
    resolve_iteration,
    whole_checkpoints,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.job.resume_guard import find_resume
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

METRIC = "val:total_reward/mean"


def make(root: Path, name: str, **info: Any) -> Path:
    """A checkpoint as the Megatron backend writes it."""
    iteration = root / name / "policy/weights/iter_0000000"
    iteration.mkdir(parents=True)
    for file in ("run_config.yaml", "metadata.json", ".metadata", "__0_0.distcp"):
        (iteration / file).write_text("x")
    (iteration.parent / "latest_checkpointed_iteration.txt").write_text("0")
    for file in ("config.yaml", "train_dataloader.pt"):
        (root / name / file).write_text("x")
    (root / name / "training_info.json").write_text(json.dumps(info))
    return root / name


def best_step(root: Path, *, higher: bool = True, metric: str | None = METRIC) -> int | None:
    best = find_best(whole_checkpoints(root), metric, higher_is_better=higher)
    return best.step if best else None


def test_the_best_is_that_of_the_metric_and_of_equal_ones_the_newest(tmp_path: Path) -> None:
    for step, value in ((5, 2.0), (10, 3.0), (15, 3.0), (20, 1.0)):
        make(tmp_path, f"step_{step}", **{METRIC: value})
    make(tmp_path, "step_25")  # without a validation
    make(tmp_path, "step_30", **{METRIC: float("nan")})
    assert best_step(tmp_path) == 15
    assert best_step(tmp_path, higher=False) == 20
    assert best_step(tmp_path, metric="val:other") is None
    assert best_step(tmp_path, metric=None) is None
    assert [each.step for each in whole_checkpoints(tmp_path)] == [5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize(
    "file",
    [
        "training_info.json",
        "config.yaml",
        "train_dataloader.pt",
        "policy/weights/latest_checkpointed_iteration.txt",
        "policy/weights/iter_0000000/run_config.yaml",
        "policy/weights/iter_0000000/metadata.json",
        "policy/weights/iter_0000000/.metadata",
        "policy/weights/iter_0000000/__0_0.distcp",
        "policy/weights",
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_not_whole(tmp_path: Path, file: str) -> None:
    path = make(tmp_path, "step_1")
    assert whole_checkpoints(tmp_path)
    shutil.rmtree(path / file) if file == "policy/weights" else (path / file).unlink()
    (checkpoint,) = read_checkpoints(tmp_path)
    assert checkpoint.lacks
    assert not whole_checkpoints(tmp_path)


@pytest.mark.parametrize(("file", "text"), [("training_info.json", "{"), (".metadata", "")])
def test_a_part_that_is_half_written_is_missing(tmp_path: Path, file: str, text: str) -> None:
    path = make(tmp_path, "step_1")
    next(path.rglob(file)).write_text(text)
    assert not whole_checkpoints(tmp_path)


def test_loader_states_of_several_tasks_and_another_backend_are_whole_too(tmp_path: Path) -> None:
    path = make(tmp_path, "step_1")
    (path / "train_dataloader.pt").rename(path / "train_dataloader_math.pt")
    shutil.rmtree(path / "policy/weights")
    (path / "policy/weights/model").mkdir(parents=True)
    assert whole_checkpoints(tmp_path)


@pytest.mark.parametrize("version", [Version.V0_7_0, Version.HEAD])
def test_leftovers_of_a_crash_are_moved_out_of_sight(tmp_path: Path, version: Version) -> None:
    root, aside = tmp_path / "checkpoints", tmp_path / "aside"
    make(root, "step_10")
    make(root, "old_step_10")
    make(root, "old_step_20", tag=7)  # the crash came between the two renames
    (make(root, "step_30") / "training_info.json").unlink()
    make(root, "tmp_step_30")
    make(root, "step_x")
    told = "\n".join(clear_leftovers(root, aside, version))
    left = {"step_10", "step_20", "step_x"}
    left |= {"tmp_step_30"} if version >= Version.HEAD else set()
    assert {path.name for path in root.iterdir()} == left
    assert whole_checkpoints(root)[-1].info == {"tag": 7}
    assert "old_step_20 was not yet replaced" in told
    assert "step_30 is not whole (it lacks training_info.json)" in told
    assert "tmp_step_30 is half" in told


def test_what_is_moved_aside_again_hides_nothing_that_was(tmp_path: Path) -> None:
    for _ in range(3):
        make(tmp_path, "tmp_step_1")
        list(clear_leftovers(tmp_path, tmp_path / "aside", Version.V0_6_0))
    names = sorted(path.name for path in (tmp_path / "aside").iterdir())
    assert names == ["tmp_step_1.1", "tmp_step_1.2", "tmp_step_1.3"]


def test_checkpoints_of_unknown_origin_are_not_continued(tmp_path: Path) -> None:
    make(tmp_path, "step_4")
    with pytest.raises(InputError, match="has step_4, and nothing says what it was made of"):
        find_resume(tmp_path, {"model": "m"}, version=Version.HEAD, aside=tmp_path / "a", say=print)


@pytest.mark.parametrize(
    ("tracker", "name"),
    [("5", "iter_0000005"), ("release\n", "release"), (None, "iter_0000007"), ("five", None)],
)
def test_the_iteration_is_the_one_that_the_tracker_names(
    tmp_path: Path, tracker: str | None, name: str | None
) -> None:
    (tmp_path / "iter_0000007").mkdir()
    if tracker is not None:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(tracker)
    assert resolve_iteration(tmp_path) == (tmp_path / name if name else None)
