"""The order of events between updates: validate, save, stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.steps.blocks.model import parallel
from nemotron_style.steps.blocks.training.loop import Schedule, TrainingLoop


class ServiceDown(Exception):
    """A service gave up."""


class Run:
    """A run that writes down what happens: ``u`` update, ``v`` validation, ``s`` save."""

    def __init__(self, root: Path, *, stop: Stop | None = None, **schedule: int | bool) -> None:
        parallel.initialize()
        ctx = StepContext(run_dir=root, inputs={}, outputs=(), stop=stop or Stop())
        self.events: list[str] = []
        self.better: set[int] = set()
        self.fails_at: int | None = None
        plan = {"steps": 4, "validation_interval": 0, "save_interval": 0} | schedule
        self.loop = TrainingLoop(
            ctx,
            Schedule(**plan),
            validate=self._validate,
            save=lambda step: self.events.append(f"s{step}"),
            failures=(ServiceDown,),
        )

    def train(self, done: int = 0, **options: int) -> str:
        for step in self.loop.steps(done, **options):
            self.events.append(f"u{step}")
        return " ".join(self.events)

    def _validate(self, step: int) -> bool:
        if step == self.fails_at:
            raise ServiceDown
        self.events.append(f"v{step}")
        return step in self.better


def test_only_the_end_is_validated_and_saved_where_the_intervals_are_zero(tmp_path: Path) -> None:
    assert Run(tmp_path).train() == "u1 u2 u3 u4 v4 s4"


def test_validation_comes_before_saving_at_their_intervals_and_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, steps=5, validation_interval=2, save_interval=3)
    assert run.train() == "u1 u2 v2 u3 s3 u4 v4 u5 v5 s5"


def test_start_end_and_first_validation_can_be_chosen(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        steps=5,
        validation_interval=2,
        validate_at_start=True,
        validate_at_end=False,
        validate_from=3,
    )
    assert run.train(validated=-1) == "v0 u1 u2 u3 u4 v4 u5 s5"


def test_a_run_without_steps_makes_none_and_saves_nothing(tmp_path: Path) -> None:
    assert Run(tmp_path, steps=0).train() == ""


def test_a_better_model_is_saved_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, validation_interval=1)
    run.better = {2}
    assert run.train() == "u1 v1 u2 v2 s2 u3 v3 u4 v4 s4"


def test_a_continued_run_neither_validates_nor_saves_what_was_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, validation_interval=1, save_interval=1)
    assert run.train(2) == "u3 v3 s3 u4 v4 s4"
    assert Run(tmp_path).train(4) == ""


def test_what_was_saved_before_its_validation_is_validated_first(tmp_path: Path) -> None:
    assert Run(tmp_path, validation_interval=2).train(2, validated=0) == "v2 u3 u4 v4 s4"


def test_a_stop_is_saved_and_then_raised(tmp_path: Path) -> None:
    stop = Stop()
    run = Run(tmp_path, stop=stop, validation_interval=2)
    steps = run.loop.steps(0)
    assert [next(steps), next(steps)] == [1, 2]
    stop.requested = True
    with pytest.raises(Interrupted, match="stopped after step 2 of 4; the same command continues"):
        next(steps)
    assert run.events == ["v2", "s2"]


def test_a_stop_at_the_end_is_too_late_and_one_before_the_start_saves_nothing(
    tmp_path: Path,
) -> None:
    stop = Stop(requested=True)
    assert Run(tmp_path, stop=stop).train(4) == ""
    run = Run(tmp_path, stop=stop)
    with pytest.raises(Interrupted, match="after step 0"):
        run.train()
    assert run.events == []


def test_the_state_is_saved_when_validation_fails(tmp_path: Path) -> None:
    run = Run(tmp_path, validation_interval=2)
    run.fails_at = 2
    with pytest.raises(ServiceDown):
        run.train()
    assert run.events == ["u1", "u2", "s2"]


@pytest.mark.parametrize("error", [ServiceDown(), Interrupted("stop")])
def test_the_state_is_saved_once_when_the_work_before_an_update_fails(
    tmp_path: Path, error: Exception
) -> None:
    run = Run(tmp_path, save_interval=2)

    def train(fails_before: int) -> None:
        for step in run.loop.steps(0):
            with run.loop.save_on_failure():
                if step == fails_before:
                    raise error
            run.events.append(f"u{step}")

    with pytest.raises(type(error)):
        train(4)
    assert run.events == ["u1", "u2", "s2", "u3", "s3"]
    run.events.clear()
    with pytest.raises(type(error)):
        train(3)
    assert run.events == ["u1", "u2", "s2"]


def test_the_rate_counts_from_the_first_step(tmp_path: Path, monkeypatch) -> None:
    run, now = Run(tmp_path), iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    next_step = run.loop.steps(0)
    monkeypatch.setattr("nemotron_style.steps.blocks.training.loop.any_rank", lambda flag: flag)
    monkeypatch.setattr(StepContext, "stopping", False)
    next(next_step)
    assert (run.loop.rate(100), run.loop.rate(100)) == (50.0, 50.0)


def test_laps_are_those_of_one_step(tmp_path: Path, monkeypatch) -> None:
    run, now = Run(tmp_path), iter([10.0, 12.0, 15.0, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    monkeypatch.setattr("nemotron_style.steps.blocks.training.loop.any_rank", lambda flag: flag)
    monkeypatch.setattr(StepContext, "stopping", False)
    steps = run.loop.steps(0)
    next(steps)
    run.loop.lap("sampling")
    assert run.loop.lap("training") == {"sampling": 2.0, "training": 3.0}
    next(steps)
    assert run.loop.lap("sampling") == {"sampling": 1.0}
