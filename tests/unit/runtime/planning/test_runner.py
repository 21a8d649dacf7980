"""A chain that is handed over as a whole, or taken back as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from nemotron_style.runtime.errors import Interrupted, StepFailed, StepsError
from nemotron_style.runtime.launch.base import JobHandle
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.planning import runner
from nemotron_style.runtime.planning.runner import submit_pipeline


@dataclass
class Queue(LocalLauncher):
    """Takes two jobs and not the third; ``cancelling`` is what each cancel then does."""

    refusal: BaseException = field(default_factory=lambda: StepFailed("the queue is full"))
    cancelling: Callable[[int], None] = lambda number: None
    taken: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def submit(self, request: Any, *, after: Any = ()) -> JobHandle:
        if len(self.taken) == 2:
            raise self.refusal
        self.taken.append(request.plan.run_id)
        return JobHandle("local", request.plan.run_dir, 1)

    def cancel(self, handle: JobHandle, *, force: bool = False) -> None:
        self.tried.append(handle.run_dir.name)
        self.cancelling(len(self.tried))


def hand_over(mill: Any, queue: Queue) -> StepsError:
    with pytest.raises(StepsError) as caught:
        submit_pipeline(mill.compile("mill/bake"), launcher=queue)
    return caught.value


def break_first(number: int) -> None:
    if number == 1:
        raise StepFailed("no answer in 60 seconds")


def break_all(number: int) -> None:
    raise OSError("disk full")


def interrupt_first(number: int) -> None:
    raise KeyboardInterrupt


def test_every_job_is_cancelled_although_the_first_cancel_fails(mill: Any) -> None:
    queue = Queue(cancelling=break_first)
    error = hand_over(mill, queue)
    assert isinstance(error, StepFailed)
    assert queue.tried == queue.taken[::-1]
    full, left = error.problems
    assert full.what == "the queue is full"
    assert left.where == queue.taken[1]
    assert "could not be cancelled: no answer in 60 seconds" in left.what
    assert left.fix == f"nemotron-style runs cancel --force {queue.taken[1]}"


def test_jobs_that_stay_are_all_named(mill: Any) -> None:
    queue = Queue(cancelling=break_all)
    error = hand_over(mill, queue)
    assert [problem.where for problem in error.problems[1:]] == queue.taken[::-1]


def test_a_second_interrupt_ends_the_cancelling_and_names_what_is_left(mill: Any) -> None:
    queue = Queue(refusal=KeyboardInterrupt(), cancelling=interrupt_first)
    error = hand_over(mill, queue)
    assert isinstance(error, Interrupted)
    assert queue.tried == queue.taken[:0:-1]
    assert [problem.where for problem in error.problems[1:]] == queue.taken[::-1]


def test_where_all_can_be_cancelled_the_refusal_itself_is_raised(mill: Any) -> None:
    refusal = StepFailed("the queue is full")
    queue = Queue(refusal=refusal)
    assert hand_over(mill, queue) is refusal
    assert queue.tried == queue.taken[::-1]


def test_a_decision_that_cannot_be_written_takes_the_chain_back_too(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, record = Queue(), runner.record_decision

    def fail_late(run: Any) -> None:
        if queue.taken:
            raise OSError("disk full")
        record(run)

    monkeypatch.setattr(runner, "record_decision", fail_late)
    with pytest.raises(OSError, match="disk full"):
        submit_pipeline(mill.compile("mill/bake"), launcher=queue)
    assert queue.tried == queue.taken
    assert len(queue.taken) == 1
