"""The worker, in this process: what it verifies, runs, seals, commits and writes down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.snapshot import plan_snapshot, write_snapshot
from nemotron_style.runtime.step.context import ProcessRank, Stop
from nemotron_style.runtime.step.metrics import read_metrics
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.worker import main as worker_main
from nemotron_style.runtime.worker.__main__ import leave
from nemotron_style.runtime.worker.main import ATTEMPT_VARIABLE, main, read_rank
from nemotron_style.runtime.worker.outputs import SEAL, Task


@pytest.fixture(autouse=True)
def keep_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(ATTEMPT_VARIABLE, raising=False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def write_plan(plan: Plan) -> RunFolder:
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    (plan.run_dir / "plan.json").write_text(plan.to_json())
    return RunFolder(plan.run_dir)


def carry_out(
    mill: Any, step: str = "mill/grow", *overrides: str, **request: Any
) -> tuple[int, RunFolder]:
    """Plan ``step`` and work on it, and on what it needs, in this process."""
    code, folder = 0, RunFolder(mill.root)
    for run in mill.compile(step, *overrides, **request).runs:
        folder = write_plan(run.plan)
        code = main([str(folder.path / "plan.json")])
    return code, folder


def test_a_step_ends_with_artifacts_and_a_complete_run(mill: Any) -> None:
    code, folder = carry_out(mill)
    assert code == 0
    assert folder.state == "COMPLETED"
    assert folder.outputs is not None
    assert folder.outputs["figures"] == {"total": 10}
    assert sorted(folder.outputs["outputs"]) == ["chaff", "sack"]
    artifact = mill.store.resolve("mill-grow-default")
    assert (artifact.path / "sack.txt").read_text() == "mill-grow- 10\n"
    assert artifact.ref == folder.outputs["outputs"]["sack"]["ref"]
    (attempt,) = folder.attempts
    assert attempt.record["exit_code"] == 0
    assert [line["step"] for line in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_the_record_tells_how_it_was_made(mill: Any) -> None:
    carry_out(mill, "mill/grind")
    record = mill.store.resolve("mill-grind-default").record
    made = mill.store.resolve("mill-grow-default")
    assert record.producer is not None
    assert (record.producer.step, record.producer.slot) == ("mill/grind", "sack")
    assert record.producer.attempts == ({"number": 1, "state": "COMPLETED"},)
    assert [(edge.slot, edge.ref, edge.digest) for edge in record.inputs] == [
        ("input", made.ref, made.digest)
    ]
    assert record.facts == {"moist": False}
    assert record.metrics == {"step": 4, "total": 10}
    assert record.seeds == {"seed": 1234}
    assert record.config["steps"] == 4
    assert record.environment["python"] == sys.version.split()[0]
    assert record.hardware["cores"] >= 1
    assert set(record.code) >= {"digest", "entrypoint", "version"}


def test_what_is_no_longer_needed_is_gone(mill: Any) -> None:
    _, folder = carry_out(mill)
    assert not (folder.path / "staging").exists()
    assert not (folder.path / "checkpoints").exists()


SHARING = """
import os


def run(config, ctx):
    kept = ctx.run_dir / "checkpoints/loop/step_1"
    kept.mkdir(parents=True)
    (kept / "weights").write_text("grain")
    os.link(kept / "weights", ctx.output("sack").path / "weights")
    (ctx.output("chaff").path / "chaff.txt").write_text(str((kept / "weights").stat().st_ino))
"""


def test_a_file_that_an_output_shares_with_a_checkpoint_is_not_copied(mill: Any) -> None:
    mill.write("code/milling/recipe.py", SHARING)
    code, _ = carry_out(mill)
    assert code == 0
    sack, chaff = (
        mill.store.resolve("mill-grow-default"),
        mill.store.resolve("mill-grow-default.chaff"),
    )
    number = int((chaff.path / "chaff.txt").read_text())
    assert (sack.path / "weights").stat().st_ino == number


def test_a_crash_leaves_a_traceback_in_the_log_and_one_line_in_the_record(
    mill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = carry_out(mill, "mill/grow", "raise_at=3")
    assert code == 1
    record = folder.attempts[-1].record
    assert (record["state"], record["exit_code"]) == ("FAILED", 1)
    assert record["error"] == "RuntimeError: the mill stone broke"
    assert "Traceback" in capsys.readouterr().err
    assert folder.outputs is None
    assert list(mill.store.artifacts()) == []


PRINTING = """
import io
import os
import subprocess
import sys


def run(config, ctx):
    sys.stdout.buffer.write(b"bytes \\xff\\n")
    sys.stdout.buffer.flush()
    sys.stdout.reconfigure(line_buffering=False)
    sys.stdout.write("text\\n")
    print("half \\ud800 é")
    print("error \\udcff", file=sys.stderr)
    sys.stderr.buffer.write(b"error bytes\\n")
    io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8").write("wrapped\\n")
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), b"below\\n")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True, stdout=sys.stdout)
    subprocess.run([sys.executable, "-c", "print('heir')"], check=True)
    assert sys.stdout.encoding and not sys.stdout.isatty()
    (ctx.output("sack").path / "sack.txt").write_text("full")
    (ctx.output("chaff").path / "chaff.txt").write_text("-")
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_recipe_prints_in_any_way_there_is(mill: Any, locale: str) -> None:
    mill.write("code/milling/recipe.py", PRINTING)
    (run,) = mill.compile("mill/grow").runs
    path = write_plan(run.plan).path / "plan.json"
    done = subprocess.run(
        [sys.executable, "-m", "nemotron_style.runtime.worker", str(path)],
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    accent = b"\\xe9" if locale == "C" else "é".encode()
    told = [
        b"bytes \\xff",
        b"text",
        b"half \\ud800 " + accent,
        b"wrapped",
        b"below",
        b"child",
        b"heir",
    ]
    assert done.stdout.splitlines() == told
    assert done.stderr.splitlines() == [b"error \\udcff", b"error bytes"]


def test_a_users_mistake_is_told_without_a_traceback(
    mill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, folder = carry_out(mill, "mill/grow", "refuse_at=1")
    assert code == 2
    assert folder.attempts[-1].record["error"] == "the grain is wet"
    shown = capsys.readouterr().err
    assert "the grain is wet" in shown
    assert "Traceback" not in shown


def test_a_second_attempt_continues_from_the_newest_checkpoint(
    mill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = mill.compile("mill/grow", "raise_at=4", "save_every=1").target.plan
    folder = write_plan(plan)
    assert main([str(folder.path / "plan.json")]) == 1
    mended = (mill.root / "code/milling/recipe.py").read_text()
    assert "raise RuntimeError" in mended
    checkpoint = folder.path / "checkpoints/step-00000003/state.json"
    assert json.loads(checkpoint.read_text()) == {"step": 3, "total": 6}
    capsys.readouterr()
    assert main([str(folder.path / "plan.json")]) == 1
    assert "continuing from the checkpoint of step 3" in capsys.readouterr().out
    assert [line["step"] for line in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [attempt.state for attempt in folder.attempts] == ["FAILED", "FAILED"]


def test_a_stop_request_is_an_ending_of_its_own(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop(requested=True)
    monkeypatch.setattr(worker_main, "catch_signals", lambda: stop)
    code, folder = carry_out(mill)
    assert code == 130
    record = folder.attempts[-1].record
    assert (record["state"], record["error"]) == ("CANCELLED", "stopped after step 1")
    stop.requested = False
    code, folder = carry_out(mill)
    assert code == 0
    producer = mill.store.resolve("mill-grow-default").record.producer
    assert producer is not None
    assert [attempt["state"] for attempt in producer.attempts] == ["CANCELLED", "COMPLETED"]
    assert [line["step"] for line in read_metrics(folder.path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_an_output_that_was_not_written_fails_before_any_commit(mill: Any) -> None:
    code, folder = carry_out(mill, "mill/grow", "nothing=true")
    assert code == 1
    assert "sack: the step wrote nothing" in folder.attempts[-1].record["error"]
    assert list(mill.store.artifacts()) == []


def test_a_changed_input_is_refused(mill: Any) -> None:
    carry_out(mill, "mill/grow")
    sack = mill.store.resolve("mill-grow-default").path / "sack.txt"
    plan = mill.compile("mill/grind").target.plan
    sack.chmod(0o644)
    sack.write_text("bad\n")
    folder = write_plan(plan)
    assert main([str(folder.path / "plan.json")]) == 1
    assert "sack.txt" in folder.attempts[-1].record["error"]


def test_an_input_that_was_never_made_is_refused(mill: Any) -> None:
    folder = write_plan(mill.compile("mill/grind").target.plan)
    assert main([str(folder.path / "plan.json")]) == 1
    assert "is not in the store" in folder.attempts[-1].record["error"]


def test_sources_that_changed_since_the_plan_are_refused(mill: Any) -> None:
    folder = write_plan(mill.compile("mill/grow").target.plan)
    mill.write("code/milling/extra.py", "")
    assert main([str(folder.path / "plan.json")]) == 2
    assert "sources changed" in folder.attempts[-1].record["error"]


def test_a_copy_of_the_code_that_changed_since_the_plan_is_refused(mill: Any) -> None:
    snapshot = plan_snapshot(mill.home, "milling.recipe:run")
    write_snapshot(snapshot, "milling.recipe:run")
    Path(snapshot.path, "nemotron_style/runtime/units.py").write_text("changed")
    plan = mill.compile("mill/grow").target.plan.model_copy(update={"snapshot": snapshot})
    folder = write_plan(plan)
    assert main([str(folder.path / "plan.json")]) == 2
    assert "copy of the code was changed" in folder.attempts[-1].record["error"]


def test_sources_of_a_service_that_changed_since_the_plan_are_refused(
    press: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = press.compile("mill/press").target.plan.services["power"]
    monkeypatch.setattr(worker_main, "open_inputs", lambda plan, store: {})
    task = Task(plan, Attempt(press.root / "attempts" / "1"), ProcessRank(), Stop())
    path = next((press.root / "code").rglob("wheel.py"))
    path.write_text(path.read_text() + "\nSPEED = 2\n")
    with pytest.raises(UsageError, match="sources changed after the plan was made"):
        worker_main.work(task)


def test_a_config_that_no_longer_fits_is_refused(mill: Any) -> None:
    plan = mill.compile("mill/grow").target.plan
    folder = write_plan(plan.model_copy(update={"config": {**plan.config, "steps": "many"}}))
    assert main([str(folder.path / "plan.json")]) == 2
    assert "steps" in folder.attempts[-1].record["error"]


def test_an_edited_plan_starts_nothing(mill: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plan(mill.compile("mill/grow").target.plan)
    path = folder.path / "plan.json"
    path.write_text(path.read_text().replace('"generation": 0', '"generation": 1'))
    assert main([str(path)]) == 2
    assert "was changed after it was made" in capsys.readouterr().err
    assert folder.attempts == []


def test_what_was_sealed_is_committed_without_running_again(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies between its commits leaves only the other commits to do."""
    real = Store.commit
    calls: list[str] = []

    def die_at_second(store: Store, staged: Path, **facts: Any) -> Artifact:
        calls.append(facts["name"])
        if len(calls) == 2:
            raise SystemExit(9)
        return real(store, staged, **facts)

    monkeypatch.setattr(Store, "commit", die_at_second)
    code, folder = carry_out(mill)
    assert code == 1
    assert len(list(folder.path.glob(f"staging/*/{SEAL}"))) == 1
    monkeypatch.setattr(Store, "commit", real)
    monkeypatch.setattr(worker_main, "run_recipe", lambda *_: pytest.fail("ran the recipe again"))
    assert main([str(folder.path / "plan.json")]) == 0
    assert folder.outputs is not None
    assert folder.outputs["figures"] == {"total": 10}
    assert len(list(mill.store.artifacts())) == 2


def test_a_complete_run_is_left_alone(mill: Any) -> None:
    _, folder = carry_out(mill)
    path = str(folder.path / "plan.json")
    assert main([path]) == 1  # nothing to begin
    assert len(folder.attempts) == 1


def test_a_worker_that_was_given_up_does_nothing(
    mill: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_plan(mill.compile("mill/grow").target.plan)
    attempt = folder.claim_attempt()
    assert attempt is not None
    assert attempt.abandon()
    monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
    assert main([str(folder.path / "plan.json")]) == 1
    assert "this one gives way" in capsys.readouterr().err
    assert folder.outputs is None


def test_a_live_attempt_is_alone(mill: Any) -> None:
    folder = write_plan(mill.compile("mill/grow").target.plan)
    first = folder.claim_attempt()
    assert first is not None
    assert first.state == "PENDING"
    assert folder.claim_attempt() is None
    assert first.take_ownership()
    assert not first.abandon()
    assert first.state == "RUNNING"
    assert folder.claim_attempt() is None


def test_a_dead_launcher_is_buried_and_followed(mill: Any) -> None:
    folder = write_plan(mill.compile("mill/grow").target.plan)
    first = folder.claim_attempt()
    assert first is not None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    first.update(launcher=worker_identity(gone.pid))
    gone.wait()
    assert first.state == "LOST"
    second = folder.claim_attempt()
    assert second is not None
    assert second.number == 2
    assert not first.take_ownership()  # its worker comes too late


def worker_identity(pid: int) -> dict[str, object]:
    from nemotron_style.runtime.process import identify_process

    return identify_process(pid)


def test_another_rank_tells_of_its_failure_and_the_first_rank_repeats_it(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = mill.compile("mill/grow", "raise_at=1").target.plan
    two = {"launch": "torchrun", "resources": {"nodes": 1, "processes": 2}}
    folder = write_plan(plan.model_copy(update=two))
    attempt = folder.claim_attempt()
    assert attempt is not None
    monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([str(folder.path / "plan.json")]) == 1
    assert attempt.record["state"] == "PENDING"
    assert attempt.rank_failure is not None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(worker_main, "catch_signals", lambda: Stop(requested=True))
    assert main([str(folder.path / "plan.json")]) == 1
    assert attempt.record["state"] == "FAILED"
    assert attempt.record["error"] == "RuntimeError: the mill stone broke"


def test_what_every_rank_would_say_is_said_once_on_each_machine(
    mill: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = mill.compile("mill/grow", "refuse_at=1").target.plan
    four = {"launch": "torchrun", "resources": {"nodes": 2, "processes": 2}}
    folder = write_plan(plan.model_copy(update=four))
    attempt = folder.claim_attempt()
    assert attempt is not None
    monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("GROUP_RANK", str(rank // 2))
        assert main([str(folder.path / "plan.json")]) == 2
        said.append(capsys.readouterr().err)
    assert said == ["the grain is wet\n", "", "the grain is wet\n", ""]
    # What a process runs into because another one has left is no news.
    monkeypatch.setattr(worker_main, "work", lambda task: 1 / 0)
    monkeypatch.setenv("RANK", "3")
    assert main([str(folder.path / "plan.json")]) == 1
    assert capsys.readouterr().err == ""


def test_signals_set_the_flag() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        stop = worker_main.catch_signals()
        os.kill(os.getpid(), number)
        assert stop.requested


def test_a_rank_of_the_shell_is_no_rank_of_a_step_that_has_one_process(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_plan(mill.compile("mill/grow").target.plan)
    leaked = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in leaked.items():
        monkeypatch.setenv(name, value)
    assert main([str(folder.path / "plan.json")]) == 0
    assert folder.outputs is not None
    attempt = folder.last_attempt
    assert attempt is not None
    assert attempt.owner is not None
    assert attempt.owner["leader"] == attempt.owner["pid"], "cancel would not reach it otherwise"
    assert not set(leaked) & set(os.environ), "libraries for training would believe them"


def test_the_seat_is_torchruns() -> None:
    seat = read_rank({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (seat.rank, seat.world_size, seat.local_rank) == (3, 8, 1)
    assert read_rank({}).world_size == 1


def test_a_secret_never_reaches_a_record(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILL_TOKEN", "very-secret-value")
    from nemotron_style.runtime.planning.planner import compile_pipeline
    from nemotron_style.runtime.planning.request import RunRequest

    request = RunRequest("mill/bake", arguments=("very-secret-value",), inputs=("input=sack",))
    mill.store.adopt(mill.write("x/sack.txt", "x").parent, kind="flour", name="sack")
    plan = compile_pipeline(request, context=mill.context(secrets=("MILL_TOKEN",))).target.plan
    folder = write_plan(plan)
    assert main([str(folder.path / "plan.json")]) == 0
    records = [path.read_text() for path in mill.home.glob("artifacts/**/artifact.json")]
    assert records
    assert not any("very-secret-value" in text for text in records)


def test_progress_survives_for_whoever_attaches(mill: Any) -> None:
    _, folder = carry_out(mill)
    told = json.loads((folder.attempts[-1].path / "progress.json").read_text())
    assert told == {"done": 4, "total": 4, "figures": {"total": 10}}
    write_json(folder.path / "probe.json", {"b": 1, "a": 2})
    assert (folder.path / "probe.json").read_text() == '{\n  "b": 1,\n  "a": 2\n}\n'


@pytest.mark.parametrize("is_rank", [True, False])
def test_a_rank_of_torch_leaves_without_being_taken_apart(
    monkeypatch: pytest.MonkeyPatch, is_rank: bool
) -> None:
    """Its threads may abort it there, and torchrun then kills ranks that are not ready."""

    class Left(BaseException):
        """What stands for the end of the process."""

    def end(code: int) -> None:
        raise Left(code)

    group = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: is_rank)
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Left if is_rank else SystemExit, match=r"^7$"):
        leave(7)
