"""The local launcher: the exact text it submits, and what it makes of every kind of end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch.base import JobHandle, write_command, write_script
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.machine import count_cores
from nemotron_style.runtime.order import Order
from nemotron_style.runtime.pipeline import compile_pipeline
from nemotron_style.runtime.plan import Plan
from nemotron_style.runtime.run import RunFolder

HOSTILE = "a b'c\"d $(touch pwned) `touch pwned` \\ \n;*"


def plan_grow(mill: Any, *overrides: str, **profile: Any) -> Plan:
    order = Order("mill/grow", overrides=overrides)
    plan = compile_pipeline(order, world=mill.world(**profile)).target.plan
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
        f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{count_cores()}}}"\n'
        'export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"\n'
        "ulimit -c 0\n"
        f"exec {sys.executable} -m nemotron_style.runtime.worker {plan.run_dir}/plan.json\n"
    )


def test_the_command_of_several_processes(mill: Any) -> None:
    plan = plan_grow(mill).model_copy(update={"resources": {"nodes": 1, "processes": 4}, "launch": "torchrun"})
    assert write_command(plan) == (
        f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 4"
        f" -m nemotron_style.runtime.worker {plan.run_dir}/plan.json"
    )
    assert f"OMP_NUM_THREADS:-{max(1, count_cores() // 4)}" in write_script(plan)


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
