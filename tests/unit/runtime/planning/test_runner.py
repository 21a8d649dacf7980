"""A chain that is handed over or taken back as a whole; and following one of its runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_style.runtime.errors import Interrupted, StepFailed, StepsError
from nemotron_style.runtime.launch.base import JobHandle, attempt_of, handle_of
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.planning import runner
from nemotron_style.runtime.planning.runner import Interruption, submit_pipeline
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.state import JobState


@dataclass
class Queue(LocalLauncher):
    """Takes two jobs and not the third; ``cancelling`` is what each cancel then does."""

    refusal: BaseException = field(default_factory=lambda: StepFailed("the queue is full"))
    cancelling: Callable[[int], None] = lambda number: None
    claim: Callable[[RunFolder], object] = RunFolder.claim_attempt
    taken: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)

    def submit(self, request: Any, *, after: Any = ()) -> JobHandle:
        if len(self.taken) == 2:
            raise self.refusal
        self.taken.append(request.plan.run_id)
        self.claim(RunFolder(request.plan.run_dir))
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

    def fail_late(run: Any) -> str:
        if queue.taken:
            raise OSError("disk full")
        return record(run)

    monkeypatch.setattr(runner, "record_decision", fail_late)
    with pytest.raises(OSError, match="disk full"):
        submit_pipeline(mill.compile("mill/bake"), launcher=queue)
    assert queue.tried == queue.taken
    assert len(queue.taken) == 1


def claim_elsewhere(folder: RunFolder) -> None:
    """Another process begins the next attempt."""
    pid = os.fork()
    if pid == 0:
        folder.claim_attempt()
        os._exit(0)
    os.waitpid(pid, 0)


def test_what_another_command_began_meanwhile_is_not_taken_back(mill: Any) -> None:
    queue = Queue(claim=claim_elsewhere)
    hand_over(mill, queue)
    assert len(queue.taken) == 2
    assert queue.tried == []


class Quiet:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *words: None


def test_a_third_ctrl_c_leaves_what_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launcher = Queue()
    monkeypatch.setattr(runner, "find_launcher", lambda executor: launcher)
    interruption = Interruption(Quiet(), JobHandle("local", tmp_path / "a-1", 1))  # type: ignore[arg-type]
    interruption._catch(2, None)
    interruption._catch(2, None)
    assert launcher.tried == ["a-1", "a-1"]
    with pytest.raises(Interrupted, match=r"a-1 may be under way still"):
        interruption._catch(2, None)


def follow_until(end: Callable[[Attempt], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the attempts that are followed from now on; each ends as ``end`` says."""
    followed: list[int] = []

    class Launcher(LocalLauncher):
        def logs(self, handle: JobHandle, *, node: int = 0) -> Iterator[str]:
            followed.append(handle.attempt)
            end(attempt_of(handle))
            yield ""

    monkeypatch.setattr(runner, "find_launcher", lambda executor: Launcher())
    return followed


def test_who_follows_an_attempt_that_ends_follows_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That another command has begun before this one could."""
    folder = RunFolder(tmp_path / "runs/a-1")

    def end(attempt: Attempt) -> None:
        attempt.close("FAILED" if attempt.number == 1 else "CANCELLED", exit_code=7)
        if attempt.number == 1:
            folder.claim_attempt()

    followed = follow_until(end, monkeypatch)
    first = folder.claim_attempt()
    assert first is not None
    state = runner.follow_run(handle_of(first), Interruption(Quiet()))  # type: ignore[arg-type]
    assert followed == [1, 2]
    assert (state.state, state.exit_code) == ("CANCELLED", 7)


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_run_that_was_dying_when_it_was_attached_to_begins_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abandoned: bool
) -> None:
    folder = RunFolder(tmp_path / "runs/a-1")

    def end(attempt: Attempt) -> None:
        if attempt.number == 1 and abandoned:
            attempt.declare_lost("its machine is gone")
        attempt.close("LOST" if attempt.number == 1 else "COMPLETED")

    def start(*_: Any) -> JobHandle:
        if not folder.attempts:
            claim_elsewhere(folder)  # by a command whose worker is killed just now
        elif folder.attempts[-1].recorded_end:
            folder.claim_attempt()
        return handle_of(folder.attempts[-1])

    followed = follow_until(end, monkeypatch)
    monkeypatch.setattr(runner, "start_run", start)
    monkeypatch.setattr(runner, "record_decision", lambda run: "")
    place = {"record_dir": folder.path, "store": str(tmp_path), "records": None, "root": None}
    plan = SimpleNamespace(**place, outputs=(), step="a", config_name="tiny", is_seen=True)
    run = SimpleNamespace(plan=plan, decision=SimpleNamespace(action="attach"))
    interruption: Any = Interruption(Quiet())  # type: ignore[arg-type]
    if abandoned:  # whoever said so decides what happens next
        with pytest.raises(StepFailed):
            runner.execute_run(run, LocalLauncher(), interruption)  # type: ignore[arg-type]
        assert followed == [1]
    else:
        runner.execute_run(run, LocalLauncher(), interruption)  # type: ignore[arg-type]
        assert followed == [1, 2]


@pytest.mark.parametrize("reason", ["stopped after step 3 of 9; the same command continues", ""])
def test_how_a_stopped_run_goes_on_is_said_once(tmp_path: Path, reason: str) -> None:
    run: Any = SimpleNamespace(plan=SimpleNamespace(step="mill/grow", config_name="tiny"))
    error = runner.explain_failure(run, JobState("CANCELLED", reason=reason), RunFolder(tmp_path))
    assert str(error).count("the same command") == 1
