"""The local launcher: the exact text it submits, and what it makes of every kind of end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hosts import pretend_to_be
from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch import session
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.launch_sh import write_command, write_script
from nemotron_style.runtime.launch.local import LocalLauncher, close_unreported
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.process import find_marked
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.worker.environment import count_cores
from plans import build_plan, snapshot_in
from waiting import until

GOLDEN = Path(__file__).parents[3] / "golden" / "launch"
HOSTILE = "a b'c\"d $(touch pwned) `touch pwned` \\ \n;*"
NASTY = "a b'c\"d $(touch X) `touch X`; # ünï, \\ \n next ${HOME} $$ %s"
PLACE = '/mnt/sha red/it\'s "here"; touch X #$(touch X)/stö,re\nx'
NATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hostile": {
        "store": PLACE,
        "env": {"NASTY": NASTY, "OMP_NUM_THREADS": "1"},
        "setup": ("echo 'set up'",),
        "secrets": ("HF_TOKEN",),
        "mounts": (
            {"source": f"{PLACE} two", "target": '/da ta;"x"', "options": ("ro", "rslave")},
            {"source": "/scratch:1 it's; touch X", "target": "/scratch"},
        ),
    },
}
IMAGE = {"image": "nvcr.io/nvidia/nemo:25.04", "python": "python3"}
CASES: dict[str, dict[str, Any]] = {
    "local_attached": {"snapshot": None},
    "local_torchrun": {
        "resources": {"nodes": 1, "processes": 2},
        "launch": "torchrun",
        "snapshot": None,
    },
    "local_detached": {
        "detached": True,
        "inputs": (
            {"slot": "model", "kind": "stone", "source": "run:sft-base-0123456789ab/model"},
            {"slot": "data", "kind": "stone", "source": "run:data-toy-0123456789ab/train"},
            {"slot": "more", "kind": "stone", "source": "run:data-toy-0123456789ab/val"},
            {"slot": "other", "kind": "stone", "source": "sha256:ab"},
        ),
        "site": {"grace_seconds": 30},
    },
    "local_service": {"services": True, "snapshot": None},
    "container_docker": {**IMAGE, "site": {"engine": "docker", "gpus_per_node": 8}},
    "container_podman": {
        **IMAGE,
        "detached": True,
        "site": {"engine": "podman", "gpus_per_node": 8},
    },
}


def make_plan(**changes: Any) -> Plan:
    """A plan whose every word is fixed."""
    store = changes.get("store", "/mnt/shared/store")
    usual = {
        "executor": "local",
        "workdir": f"{store} work",
        "snapshot": snapshot_in(store),
    }
    return build_plan(usual, **changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rendering takes from the machine."""
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 100)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("nature", NATURES)
@pytest.mark.parametrize("case", CASES)
def test_rendering_is_the_golden_text(case: str, nature: str) -> None:
    request = LocalLauncher().compile(make_plan(**NATURES[nature], **CASES[case]), attempt=2)
    head, _, text = request.render().partition(f"# runs/{request.plan.run_id}/launch.sh\n")
    assert head == f"# runs/{request.plan.run_id}/plan.json\n{request.plan.to_json()}\n"
    path = GOLDEN / f"{case}_{nature}.txt"
    if "REWRITE_GOLDEN" in os.environ:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("nature", NATURES)
@pytest.mark.parametrize("case", CASES)
def test_a_shell_reads_the_rendered_command_as_what_is_executed(case: str, nature: str) -> None:
    request = LocalLauncher().compile(make_plan(**NATURES[nature], **CASES[case]))
    subprocess.run(["bash", "-n"], input=request.files["launch.sh"], text=True, check=True)
    _, _, command = request.render().rpartition("\n$ ")
    words = shlex.split(command)
    if request.plan.detached:
        assert words.pop(0).startswith("PYTHONPATH=")
    assert tuple(words) == request.argv


def test_an_interpreter_that_is_not_there_is_told_before() -> None:
    launcher = LocalLauncher()
    (problem,) = launcher.check(make_plan(python="/no/where/python"))
    assert str(problem) == ("profile site: python: there is no such program; got /no/where/python")
    for found in (sys.executable, "python-of-the-setup-lines"):
        assert list(launcher.check(make_plan(python=found))) == []


def test_a_run_of_this_machine_has_no_store_elsewhere() -> None:
    with pytest.raises(ProfileError, match=r"remote_store"):
        LocalLauncher().compile(make_plan(records="/home/me/store"))


def move(mill: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The project in a directory whose name is a command."""
    moved = type(mill)(mill.root.parent / "sp ace; touch PWN")
    os.rename(mill.root, moved.root)
    monkeypatch.chdir(moved.root)
    monkeypatch.syspath_prepend(str(moved.root / "code"))
    monkeypatch.setenv("PYTHONPATH", str(moved.root / "code"))
    return moved


@pytest.mark.parametrize("detached", [False, True])
def test_hostile_values_arrive_byte_for_byte(
    mill: Any, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    mill = move(mill, monkeypatch)
    launcher = LocalLauncher()
    context = mill.context(env={"NASTY": NASTY}, setup=('printf %s "$NASTY" > nasty.txt',))
    context = type(context)(**{**vars(context), "detached": detached})
    request = RunRequest(
        "mill/bake", "bare", inputs=(f"input={mill.root}/flour",), arguments=(NASTY, "; #")
    )
    mill.write("flour/sack.txt", "white\n")
    pipeline = compile_pipeline(request, context=context)
    for adoption in pipeline.adoptions:
        mill.store.adopt(adoption.location, kind=adoption.kind, name=adoption.name)
    handle = launcher.submit(launcher.compile(pipeline.target.plan))
    wait(launcher, handle)
    assert launcher.state(handle).state == "COMPLETED"
    assert (mill.root / "nasty.txt").read_bytes() == NASTY.encode()
    made = json.loads((handle.run_dir / "outputs.json").read_text())["outputs"]["chaff"]["ref"]
    assert (mill.store.resolve(made).path / "chaff.txt").read_bytes() == f"{NASTY} ; #".encode()
    created = [path.name for path in mill.root.parent.rglob("*")]
    assert not {"X", "PWN"} & set(created)


def plan_grow(mill: Any, *overrides: str, **profile: Any) -> Plan:
    request = RunRequest("mill/grow", overrides=overrides)
    plan = compile_pipeline(request, context=mill.context(**profile)).target.plan
    assert isinstance(plan, Plan)
    return plan


def wait(launcher: LocalLauncher, handle: JobHandle) -> str:
    return "".join(launcher.logs(handle))


def test_the_script_of_one_process(mill: Any) -> None:
    plan = plan_grow(mill, env={"B": "2", "A": "x y"}, setup=("ulimit -c 0",))
    assert write_script(plan) == (
        "#!/usr/bin/env bash\n"
        "set -euo pipefail\n"
        f"cd {mill.root}\n"
        "export A='x y'\n"
        "export B=2\n"
        'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(((n = $(nproc) / 1) > 0 ? n : 1))}"\n'
        'export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-10000}"\n'
        "if grep -qs GenuineIntel /proc/cpuinfo; then "
        'export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"; fi\n'
        "ulimit -c 0\n"
        f"exec {sys.executable} -m nemotron_style.runtime.worker {plan.run_dir}/plan.json\n"
    )


def test_the_command_of_several_processes(mill: Any) -> None:
    plan = plan_grow(mill).model_copy(
        update={"resources": {"nodes": 1, "processes": 4}, "launch": "torchrun"}
    )
    assert write_command(plan) == (
        f"{sys.executable} -m torch.distributed.run --rdzv-backend c10d --rdzv-conf store_type=file"
        ' --rdzv-endpoint "$(mktemp)" --local-addr 127.0.0.1 --nproc-per-node 4'
        f" -m nemotron_style.runtime.worker {plan.run_dir}/plan.json"
    )


@pytest.mark.parametrize("processes", [1, 2, 1000])
def test_processes_share_the_cores_of_the_machine_they_run_on(mill: Any, processes: int) -> None:
    plan = plan_grow(mill).model_copy(update={"resources": {"nodes": 1, "processes": processes}})
    (line,) = [one for one in write_script(plan).splitlines() if "OMP_NUM_THREADS" in one]
    shown = subprocess.run(
        ["bash", "-euc", f"{line}; echo $OMP_NUM_THREADS"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(shown.stdout) == max(1, count_cores() // processes)


def test_hostile_values_stay_values(mill: Any) -> None:
    script = write_script(plan_grow(mill, env={"EVIL": HOSTILE}))
    script = script.replace("exec ", "exec printenv EVIL #")
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout == HOSTILE + "\n"
    assert not (mill.root / "pwned").exists()


def test_an_environment_that_a_shell_cannot_hold_is_refused(mill: Any) -> None:
    plan = plan_grow(mill).model_copy(update={"env": {"A-B": "1", "C": "x\0y"}})
    with pytest.raises(ProfileError) as caught:
        write_script(plan)
    assert len(caught.value.problems) == 2


def test_threads_set_by_the_profile_are_kept(mill: Any) -> None:
    script = write_script(plan_grow(mill, env={"OMP_NUM_THREADS": "3"}))
    assert script.count("OMP_NUM_THREADS") == 1
    assert "export OMP_NUM_THREADS=3\n" in script


def test_more_than_one_machine_is_refused(mill: Any) -> None:
    plan = plan_grow(mill).model_copy(update={"resources": {"nodes": 2, "processes": 1}})
    with pytest.raises(ProfileError, match=r"wants 2 machines"):
        LocalLauncher().compile(plan)


def test_a_missing_secret_is_refused_before_anything_is_written(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILL_TOKEN", raising=False)
    launcher, plan = LocalLauncher(), plan_grow(mill, secrets=("MILL_TOKEN",))
    with pytest.raises(ProfileError, match=r"MILL_TOKEN"):
        launcher.submit(launcher.compile(plan))
    assert not mill.home.exists()


def test_what_is_rendered_is_what_is_written_and_run(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill)
    request = launcher.compile(plan)
    text = request.render()
    handle = launcher.submit(request)
    assert "4/4" in wait(launcher, handle)
    assert launcher.state(handle).state == "COMPLETED"
    for name in ("plan.json", "launch.sh"):
        written = (plan.run_dir / name).read_text()
        assert written == request.files[name]
        assert f"# runs/{plan.run_id}/{name}\n{written.rstrip()}\n" in text
    assert text.endswith(f"$ bash {plan.run_dir}/launch.sh\n")


def test_a_live_attempt_is_followed_instead_of_started_twice(mill: Any) -> None:
    gate = mill.root / "gate"
    plan = plan_grow(mill, "hold_at=2", f"gate={gate}")
    first, second = LocalLauncher(), LocalLauncher()
    handle = first.submit(first.compile(plan))
    attached = second.submit(second.compile(plan))
    assert attached == handle
    assert second.children == {}
    gate.write_text("")
    assert wait(first, handle) == wait(second, attached)
    assert second.state(attached).state == "COMPLETED"


def test_a_complete_run_is_not_started_again(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill)
    handle = launcher.submit(launcher.compile(plan))
    wait(launcher, handle)
    assert launcher.submit(launcher.compile(plan)) == handle
    assert len(RunFolder(plan.run_dir).attempts) == 1


def test_a_failure_keeps_its_code_and_message(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill, "raise_at=2")
    handle = launcher.submit(launcher.compile(plan))
    assert "Traceback" in wait(launcher, handle)
    state = launcher.state(handle)
    assert (state.state, state.exit_code) == ("FAILED", 1)
    assert state.reason == "RuntimeError: the mill stone broke"


def test_cancel_lets_the_step_save(mill: Any) -> None:
    plan = plan_grow(mill, "hold_at=3", f"gate={mill.root}/gate")
    launcher, other = LocalLauncher(), LocalLauncher()
    handle = launcher.submit(launcher.compile(plan))
    for text in launcher.logs(handle):
        if "holding" in text:
            other.cancel(handle)  # whoever asks, it need not be the one who started it
    state = launcher.state(handle)
    assert (state.state, state.exit_code) == ("CANCELLED", 130)
    assert (plan.run_dir / "checkpoints/step-00000003").is_dir()


def test_force_ends_it_at_once(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill, "hold_at=3", f"gate={mill.root}/gate")
    handle = launcher.submit(launcher.compile(plan))
    for text in launcher.logs(handle):
        if "holding" in text:
            LocalLauncher().cancel(handle, force=True)
    assert launcher.state(handle).state == "CANCELLED"
    assert not (plan.run_dir / "checkpoints/step-00000003").exists()


def test_a_killed_worker_is_told_with_its_signal(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill, "hold_at=3", f"gate={mill.root}/gate")
    handle = launcher.submit(launcher.compile(plan))
    for text in launcher.logs(handle):
        if "holding" in text:
            os.kill(launcher.children[handle].pid, signal.SIGKILL)
    state = launcher.state(handle)
    assert (state.state, state.exit_code) == ("FAILED", 137)
    assert "SIGKILL" in state.reason


def test_a_script_that_never_reaches_the_worker_is_told(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill, setup=("exit 7",))
    handle = launcher.submit(launcher.compile(plan))
    wait(launcher, handle)
    state = launcher.state(handle)
    assert (state.state, state.exit_code) == ("FAILED", 7)
    assert "before its time" in state.reason


def test_a_stop_before_the_worker_listens_is_a_stop(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill, setup=("kill -TERM $$",))
    handle = launcher.submit(launcher.compile(plan))
    wait(launcher, handle)
    assert launcher.state(handle).state == "CANCELLED"


@pytest.mark.parametrize(
    ("code", "state", "exit_code", "error"),
    [
        (0, "FAILED", 0, "ended with exit code 0 before its time"),
        (7, "FAILED", 7, "ended with exit code 7 before its time"),
        (-9, "FAILED", 137, "ended by SIGKILL; was there enough memory?"),
        (137, "FAILED", 137, "ended by SIGKILL; was there enough memory?"),
        (-11, "FAILED", 139, "ended by SIGSEGV"),
        (160, "FAILED", 160, "ended by signal 32"),
        (-15, "CANCELLED", 130, "stopped before the step began"),
        (143, "CANCELLED", 130, "stopped before the step began"),
        (255, "FAILED", 255, "ended with exit code 255 before its time"),
    ],
)
def test_every_end_has_its_words(
    tmp_path: Path, code: int, state: str, exit_code: int, error: str
) -> None:
    attempt = RunFolder(tmp_path / "run").claim_attempt()
    assert attempt is not None
    close_unreported(attempt, code)
    told = attempt.record
    assert (told["state"], told["exit_code"], told["error"]) == (state, exit_code, error)


def test_whatever_ends_a_cancelled_one_it_is_cancelled(tmp_path: Path) -> None:
    attempt = RunFolder(tmp_path / "run").claim_attempt()
    assert attempt is not None
    attempt.record_cancel()
    close_unreported(attempt, 0)
    assert (attempt.record["state"], attempt.record["exit_code"]) == ("CANCELLED", 0)


def test_what_others_called_lost_is_put_right_by_who_knows(tmp_path: Path) -> None:
    attempt = RunFolder(tmp_path / "run").claim_attempt()
    assert attempt is not None
    attempt.close("LOST")
    close_unreported(attempt, 3)
    assert attempt.record["state"] == "FAILED"
    close_unreported(attempt, 4)
    assert attempt.record["exit_code"] == 3


def test_committed_outputs_stand_whatever_the_exit_code(tmp_path: Path) -> None:
    attempt = RunFolder(tmp_path / "run").claim_attempt()
    assert attempt is not None
    (tmp_path / "run/outputs.json").write_text("{}")
    attempt.record_cancel()
    close_unreported(attempt, -9)
    assert attempt.record["state"] == "COMPLETED"


def test_a_worker_that_outlives_its_parent_is_not_closed(tmp_path: Path) -> None:
    attempt = RunFolder(tmp_path / "run").claim_attempt()
    assert attempt is not None
    assert attempt.take_ownership()
    close_unreported(attempt, -9)
    assert attempt.record["state"] == "PENDING"
    assert attempt.state == "RUNNING"


def test_a_child_without_a_client_counts_and_can_be_ended(mill: Any) -> None:
    """The command line died while setup lines were still at work."""
    fifo = mill.root / "fifo"
    os.mkfifo(fifo)
    launcher, plan = LocalLauncher(), plan_grow(mill, setup=(f"cat {shlex.quote(str(fifo))}",))
    handle = launcher.submit(launcher.compile(plan))
    attempt = attempt_of(handle)
    attempt.update(launcher={})
    assert LocalLauncher().state(handle).state == "PENDING"
    assert RunFolder(plan.run_dir).claim_attempt() is None
    LocalLauncher().cancel(handle, force=True)
    wait(launcher, handle)
    assert launcher.state(handle).state == "CANCELLED"
    until(lambda: find_marked(attempt.mark) == [])


@pytest.mark.parametrize("force", [False, True])
def test_cancelled_on_another_machine_before_there_is_a_worker(
    mill: Any, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """The command line that started it does what no signal from there can."""
    fifo = mill.root / "fifo"
    os.mkfifo(fifo)
    launcher, plan = LocalLauncher(), plan_grow(mill, setup=(f"cat {shlex.quote(str(fifo))}",))
    handle = launcher.submit(launcher.compile(plan))
    with monkeypatch.context() as patch:
        pretend_to_be("beta", patch)
        LocalLauncher().cancel(handle, force=force)
    assert launcher.state(handle).state in ("PENDING", "CANCELLED")
    wait(launcher, handle)
    assert launcher.state(handle).state == "CANCELLED"
    # `cat` may end a moment after the shell around it, of which the end is recorded
    until(lambda: find_marked(attempt_of(handle).mark) == [])


def test_a_child_that_is_born_while_the_job_is_stopped_does_not_outlive_it(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell that SIGTERM ends may have started a command after it was looked for."""
    launcher, plan = LocalLauncher(), plan_grow(mill, setup=("sleep 100 & sleep 101",))
    handle = launcher.submit(launcher.compile(plan))
    attempt = attempt_of(handle)
    shell = until(lambda: len(find_marked(attempt.mark)) == 3 and attempt.child["pid"])
    looks = [[shell]]
    monkeypatch.setattr(
        session, "find_marked", lambda mark: looks.pop() if looks else find_marked(mark)
    )
    session.stop_job(attempt)
    until(lambda: find_marked(attempt.mark) == [])
    wait(launcher, handle)


def test_a_submission_that_breaks_off_leaves_a_record_of_why(mill: Any) -> None:
    launcher, plan = LocalLauncher(), plan_grow(mill)
    request = launcher.compile(plan)
    in_the_way = plan.run_dir / "launch.sh"
    in_the_way.mkdir(parents=True)
    with pytest.raises(OSError, match=r"launch\.sh"):
        launcher.submit(request)
    last = RunFolder(plan.run_dir).last_attempt
    assert last is not None
    assert last.record["state"] == "FAILED"
    assert "not submitted" in last.record["error"]
    in_the_way.rmdir()
    handle = launcher.submit(launcher.compile(plan, attempt=2))
    wait(launcher, handle)
    assert launcher.state(handle).state == "COMPLETED"
