"""A real Slurm of two nodes on this machine, started once for all tests that ask for it.

Both nodes are daemons of this host, so everything that Slurm itself decides (parsing, queueing,
signals, requeueing, exit codes) is the real thing; only the machines are not two.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.launch.slurm.launcher import SlurmLauncher
from nemotron_style.runtime.planning.pipeline import Pipeline
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest
from nemotron_style.runtime.planning.runner import submit_pipeline
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import JobState
from nemotron_style.runtime.store.store import Store
from waiting import until

NODES = 2
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PLUGIN = Path(__file__).with_name("fake_pyxis.c")


@dataclass
class Cluster:
    """The daemons, and the commands that a test gives them; each has a time limit."""

    root: Path
    name: str = "steps"
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.root / "slurm.conf"

    @property
    def has_pyxis(self) -> bool:
        return (self.root / "fake_pyxis.so").is_file()

    @property
    def environment(self) -> Mapping[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.config)}

    def run(self, *words: str, timeout: float = 120) -> str:
        """The output of a Slurm command."""
        done = subprocess.run(
            words,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm says about a job."""
        words = self.run("scontrol", "-o", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def await_state(self, job_id: str, *states: str, timeout: float = 180) -> dict[str, str]:
        """Wait until Slurm says that the job is in one of ``states``."""
        deadline = time.monotonic() + timeout
        while (job := self.job(job_id))["JobState"] not in states:
            assert time.monotonic() < deadline, f"{job_id} is {job['JobState']}, not {states}"
            time.sleep(0.05)
        return job

    def hasten(self, job_id: str) -> None:
        """Let a requeued job start soon; Slurm would make it wait for two minutes."""
        # The nodes refuse what begins in the second in which they ended it.
        self.run("scontrol", "update", f"jobid={job_id}", "StartTime=now+2")

    def clear(self) -> None:
        """End every job, and wait until the nodes are free again."""
        self.run("scancel", "--user", "root")
        until(lambda: not self.run("squeue", "--noheader").strip())

    def start(self) -> None:
        """Bring it up. Raises ``AssertionError`` with what the daemons said."""
        for name in ("state", "log", "run", "spool"):
            (self.root / name).mkdir()
        key = self.root / "munge" / "key"
        key.parent.mkdir(mode=0o700)
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        build_plugin(self.root)
        self.config.write_text(write_config(self.root, self.name))
        paths = {name: self.root / place for name, place in MUNGE_FILES.items()}
        flags = [f"--{name}={path}" for name, path in paths.items()]
        self._launch("munged", "--foreground", "--force", *flags)
        self._await(lambda: paths["socket"].exists(), "munged")
        self._launch("slurmctld", "-D", "-f", str(self.config))
        for number in range(1, NODES + 1):
            self._launch("slurmd", "-D", "-N", f"n{number}", "-f", str(self.config))
        self._await(self._is_idle, "slurm")

    def stop(self) -> None:
        """Take it down, and everything that it runs."""
        with suppress(subprocess.TimeoutExpired):  # the daemons go all the same
            subprocess.run(
                ["scancel", "--signal=KILL", "--full", "--user", "root"],
                env=dict(self.environment),
                capture_output=True,
                timeout=60,
                check=False,
            )
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def _launch(self, *words: str) -> None:
        with open(self.root / "log" / "daemons.txt", "ab") as log:
            daemon = subprocess.Popen(
                words,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(daemon)

    def _await(self, ready, name: str) -> None:
        deadline = time.monotonic() + 120
        while not ready():
            dead = any(daemon.poll() is not None for daemon in self.daemons)
            if dead or time.monotonic() > deadline:
                raise AssertionError(f"{name} does not come up: {self._complaints()}")
            time.sleep(0.02)

    def _is_idle(self) -> bool:
        shown = subprocess.run(
            ["sinfo", "--noheader", "--format=%T %D"],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return shown.stdout.strip() == f"idle {NODES}"

    def _complaints(self) -> str:
        logs = sorted((self.root / "log").iterdir())
        return "\n".join(log.read_text(errors="replace")[-1500:] for log in logs)


MUNGE_FILES = {
    "key-file": "munge/key",
    "seed-file": "munge/seed",
    "socket": "run/munge.sock",
    "pid-file": "run/munged.pid",
    "log-file": "log/munged.log",
}


def write_config(root: Path, name: str) -> str:
    """``slurm.conf`` of a cluster: free ports, files below ``root``, two nodes of this host."""
    host, port = socket.gethostname().split(".")[0], find_ports(NODES + 1)
    lines = [
        f"ClusterName={name}",
        f"SlurmctldHost={host}(127.0.0.1)",
        "SlurmUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={root}/run/munge.sock",
        f"SlurmctldPort={port}",
        f"SlurmctldPidFile={root}/run/slurmctld.pid",
        f"SlurmdPidFile={root}/run/slurmd.%n.pid",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldLogFile={root}/log/slurmctld.log",
        f"SlurmdLogFile={root}/log/slurmd.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1",
        "MinJobAge=3600",
        "KillWait=5",
        "ReturnToService=2",
    ]
    if (root / "fake_pyxis.so").is_file():
        (root / "plugstack.conf").write_text(f"required {root}/fake_pyxis.so\n")
        lines.append(f"PlugStackConfig={root}/plugstack.conf")
    for number in range(1, NODES + 1):
        place = f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number}"
        lines.append(f"{place} CPUs=4 RealMemory=4000 State=UNKNOWN")
    lines.append(f"PartitionName=debug Nodes=n[1-{NODES}] Default=YES MaxTime=INFINITE State=UP")
    return "\n".join(lines) + "\n"


def find_ports(count: int) -> int:
    """The first of ``count`` free ports in a row."""
    # Another run of the tests on this machine may look at the same time: it begins elsewhere.
    first = os.getpid() % 180
    for base in (21000 + 50 * ((first + each) % 180) for each in range(180)):
        taken = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(taken):
                one.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        finally:
            for one in taken:
                one.close()
        return base
    raise RuntimeError("no free ports")


def build_plugin(root: Path) -> None:
    """Compile the stand-in for Pyxis; without a compiler and Slurm's headers there is none."""
    if not shutil.which("cc") or not Path("/usr/include/slurm/spank.h").is_file():
        return
    words = ["cc", "-shared", "-fPIC", "-o", str(root / "fake_pyxis.so"), str(PLUGIN)]
    subprocess.run(words, check=True, timeout=120)


@contextmanager
def start_cluster(name: str = "steps") -> Iterator[Cluster]:
    """A cluster of one's own, taken down at the end; skips where Slurm cannot be had."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"Slurm is not installed here: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own takes root")
    root = Path(tempfile.mkdtemp(prefix="steps-slurm-", dir="/tmp"))
    root.chmod(0o755)
    cluster = Cluster(root, name)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    with start_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def other_cluster(slurm_cluster: Cluster) -> Iterator[Cluster]:
    """A second one, whose jobs have numbers of the first one's."""
    with start_cluster("other") as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, free of jobs, and the one that Slurm's commands talk to."""
    pytest.importorskip("submitit", reason="submitit is not installed here")
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.config))
    yield slurm_cluster
    slurm_cluster.clear()


@pytest.fixture
def fake_pyxis(slurm: Cluster) -> Cluster:
    """The cluster, whose srun knows the container flags."""
    if not slurm.has_pyxis:
        pytest.skip("no compiler or no Slurm headers (libslurm-dev) here")
    return slurm


@dataclass(frozen=True)
class Site:
    """The mill's steps on the cluster."""

    mill: Any
    cluster: Cluster
    launcher: SlurmLauncher

    def compile(self, step: str, *overrides: str, squash: bool = False, **profile: Any) -> Pipeline:
        profile = {"store": str(self.mill.home), "workdir": str(self.mill.root), **profile}
        context = PlanContext(
            catalog=load_catalog(),
            store=Store(profile["store"]),
            profile=Profile(name="site", executor="slurm", **profile),
            workdir=Path(profile["workdir"]),
            detached=True,
            force_squash=squash,
        )
        return compile_pipeline(RunRequest(step, overrides=tuple(overrides)), context=context)

    def plan(self, step: str, *overrides: str, **profile: Any) -> Plan:
        plan = self.compile(step, *overrides, **profile).target.plan
        assert isinstance(plan, Plan)
        return plan

    def submit(self, step: str, *overrides: str, **profile: Any) -> JobHandle:
        """Hand a whole chain over; the handle of its last run."""
        pipeline = self.compile(step, *overrides, **profile)
        handle = submit_pipeline(pipeline, launcher=self.launcher)[-1].handle
        assert handle is not None
        return handle

    def job_id(self, handle: JobHandle) -> str:
        return str(attempt_of(handle).job["id"])

    def wait(self, handle: JobHandle, *, timeout: float = 240) -> JobState:
        """Until the job is over and Slurm has taken it off its nodes."""
        deadline = time.monotonic() + timeout
        while not (state := self.launcher.state(handle)).is_final:
            if time.monotonic() > deadline:
                raise AssertionError(f"{state}: {self.told(handle)}")
            time.sleep(0.1)
        return state

    def await_log(self, handle: JobHandle, text: str, *, timeout: float = 180) -> None:
        """Until the first machine of the job has written ``text``."""
        log = attempt_of(handle).log
        deadline = time.monotonic() + timeout
        while True:
            state = self.launcher.state(handle)  # first: what is written by then is seen below
            if log.exists() and text in log.read_text(errors="replace"):
                return
            if state.is_final or time.monotonic() > deadline:
                raise AssertionError(f"{state}: {self.told(handle)}")
            time.sleep(0.05)

    def await_state(self, handle: JobHandle, state: str, *, timeout: float = 180) -> None:
        """Until the worker itself has written that it is in this state."""
        deadline = time.monotonic() + timeout
        while attempt_of(handle).record.get("state") != state:
            if time.monotonic() > deadline:
                raise AssertionError(self.told(handle))
            time.sleep(0.05)

    def told(self, handle: JobHandle) -> str:
        """Everything that was written about a run."""
        folder = handle.run_dir
        paths = [*folder.glob("job-*.txt"), *folder.glob("attempts/*/*")]
        files = [path for path in paths if path.is_file()]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')}" for path in files)


@pytest.fixture
def site(mill: Any, slurm: Cluster) -> Site:
    """Short for: the mill on Slurm."""
    return Site(mill, slurm, SlurmLauncher())
