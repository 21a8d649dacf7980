"""What jobs and tools inherit of the shell they are started from."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch import session
from nemotron_style.runtime.launch.container import check_container
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.launch.slurm.client import run_command
from nemotron_style.runtime.launch.slurm.launcher import choose_environment
from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE, MARK, PARENT_VARIABLE
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.shell_environment import clean_environment, find_own_variables


def _words(text: str) -> list[str]:
    return text.split()


LEAKS = _words("""
RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK NODE_RANK MASTER_ADDR MASTER_PORT
TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT PET_NPROC_PER_NODE PET_MAX_RESTARTS
OMPI_COMM_WORLD_RANK PMI_RANK PMIX_RANK MPI_LOCALRANKID MV2_COMM_WORLD_RANK LSB_JOBID RAY_ADDRESS
SLURM_JOB_ID SLURM_PROCID SLURM_CLUSTERS SLURM_TIME_FORMAT SLURMD_DEBUG SBATCH_ACCOUNT
SRUN_CPUS_PER_TASK SRUN_CONTAINER SCANCEL_NAME SCANCEL_STATE SQUEUE_FORMAT SQUEUE_STATES
SACCT_FORMAT SCONTROL_ALL GIT_DIR GIT_INDEX_FILE GIT_CONFIG_COUNT PYTHONSTARTUP PYTHONHOME
PYTHONINSPECT PYTHONOPTIMIZE PYTHONWARNINGS PYTHONIOENCODING BASH_ENV SHELLOPTS BASHOPTS TMOUT
POSIXLY_CORRECT GLOBIGNORE CDPATH BASH_FUNC_cd%% BASH_FUNC_srun%% PODMAN_USERNS
DOCKER_DEFAULT_PLATFORM LEPTON_JOB_WORKER_INDEX ACCELERATE_MIXED_PRECISION
NEMOTRON_STYLE_JOB NEMOTRON_STYLE_ATTEMPT NEMOTRON_STYLE_PARENT
""")
STAYS = _words("""
PATH HOME USER LANG LC_ALL LD_LIBRARY_PATH LD_PRELOAD TMPDIR https_proxy OMP_NUM_THREADS NCCL_DEBUG
CUDA_VISIBLE_DEVICES HF_HOME SLURM_CONF SLURM_JWT PYTHONPATH PYTHONHASHSEED PYTHONUNBUFFERED PYTHON
PYTHON_VERSION BASH_FUNC_module%% GITHUB_ACTIONS LEPTON_WORKSPACE_ID NEMOTRON_STYLE_HOME
RANKING WORLD ENV COVERAGE_PROCESS_START
""")


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LEAKS:
        if name not in ("PYTHONHOME", "BASH_ENV"):  # they would break this process's own children
            monkeypatch.setenv(name, "1")


def test_what_steers_goes_and_what_all_programs_share_stays() -> None:
    cleaned = clean_environment(dict.fromkeys([*LEAKS, *STAYS], "1"))
    assert sorted(cleaned) == sorted(STAYS)
    assert {MARK, ATTEMPT_VARIABLE, PARENT_VARIABLE} <= set(LEAKS)


def test_a_container_engine_is_one_of_this_machine() -> None:
    local = {"DOCKER_HOST": "unix:///run/user/1000/docker.sock", "CONTAINER_HOST": "/run/podman"}
    assert clean_environment(local) == local
    remote = {"DOCKER_HOST": "tcp://lab:2375", "CONTAINER_HOST": "ssh://me@lab/run/podman.sock"}
    assert clean_environment(remote) == {}


def test_an_engine_of_another_machine_is_named_by_the_check(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = mill.compile("mill/grow").target.plan.model_copy(update={"image": "x:1"})
    monkeypatch.setenv("DOCKER_HOST", "tcp://lab:2375")
    first = next(iter(check_container(plan)))
    assert (first.key, first.got) == ("engine", "tcp://lab:2375")
    assert "unset DOCKER_HOST" in first.fix


def test_a_job_of_this_machine_starts_without_them(
    tmp_path: Path, leaky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = RunFolder(tmp_path / "r").claim_attempt()
    assert attempt is not None
    assert session.start_child(["env", "-0"], attempt).wait(120) == 0
    seen = dict(line.split("=", 1) for line in attempt.log.read_text().split("\0") if "=" in line)
    ours = {ATTEMPT_VARIABLE: "1", MARK: attempt.mark.partition("=")[2]}
    assert {name: seen[name] for name in LEAKS if name in seen} == ours


def test_a_command_that_we_call_runs_without_them(leaky: None) -> None:
    seen = {line.partition("=")[0] for line in run_command(["env"]).splitlines()}
    assert not seen & set(LEAKS)


def test_a_job_of_slurm_starts_without_them_and_without_devices_of_this_machine(mill: Any) -> None:
    plan = mill.compile("mill/grow").target.plan
    chosen = choose_environment(plan, dict.fromkeys([*LEAKS, *STAYS], "1"))
    assert set(STAYS) - set(chosen) == {"SLURM_JWT", "CUDA_VISIBLE_DEVICES"}
    assert not set(chosen) & set(LEAKS)


def test_a_profile_cannot_give_a_job_a_rank(mill: Any) -> None:
    assert find_own_variables({"MASTER_PORT": "1", "NCCL_DEBUG": "1", "RANK": "1"}) == ["RANK"]
    plan = mill.compile("mill/grow").target.plan
    env = {"WORLD_SIZE": "2", "NEMOTRON_STYLE_ATTEMPT": "9", "MASTER_PORT": "29500"}
    with pytest.raises(ProfileError) as caught:
        LocalLauncher().compile(plan.model_copy(update={"env": env}))
    assert [each.key for each in caught.value.problems] == [
        "env.WORLD_SIZE",
        "env.NEMOTRON_STYLE_ATTEMPT",
    ]


def test_a_command_typed_in_somebodys_torchrun_completes(
    mill: Any, cli: Any, leaky: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: command line, launch.sh, worker, commit."""
    for name in ("PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS"):
        monkeypatch.delenv(name)  # of the command line itself
    monkeypatch.delenv("PYTHONIOENCODING")
    trap = mill.write("trap.sh", "exit 77\n")
    monkeypatch.setenv("BASH_ENV", str(trap))
    words = cli("steps", "run", "mill/grow")
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (mill.store.resolve("mill-grow-default").path / "sack.txt").is_file()
