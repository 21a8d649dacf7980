"""The text that Slurm gets: golden renderings, and what is refused instead of being written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch.slurm.job import count_grace, count_seconds, write_uri
from nemotron_style.runtime.launch.slurm.launcher import SlurmLauncher, choose_environment
from nemotron_style.runtime.launch.slurm.script import CONCLUDE
from nemotron_style.runtime.run.plan import Plan
from plans import build_plan, snapshot_in

GOLDEN = Path(__file__).parents[4] / "golden" / "launch"
NASTY = "a b'c\"d $(touch X) `touch X`; # ünï, \\ \n#SBATCH --nodes=9\n next ${HOME} $$ %s"
NATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hostile": {
        "store": '/mnt/sha red/it\'s "here"; touch X #$(touch X)/störe %j',
        "env": {"NASTY": NASTY, "OMP_NUM_THREADS": "1"},
        "setup": ("echo 'set up'",),
        "secrets": ("HF_TOKEN",),
        "site": {
            "account": "an account; touch X",
            "constraint": "a100&it's|$(touch X)#",
            "qos": "ünï, 'q'",
        },
    },
}
SITE = {"account": "research", "partition": "batch", "time": "04:00:00", "cpus_per_task": 16}
IMAGE = {"image": "nvcr.io/nvidia/nemo:25.04", "python": "python3"}
CASES: dict[str, dict[str, Any]] = {
    "bare": {"site": {"partition": "batch"}},
    "pyxis": {
        **IMAGE,
        "resources": {"nodes": 4, "processes": 8},
        "launch": "torchrun",
        "mounts": (
            {"source": "/lustre/da ta", "target": "/data", "options": ("ro", "rprivate")},
            {"source": "/lustre", "target": "/lustre"},
        ),
        "site": {**SITE, "gpus_per_node": 8, "max_requeues": 3, "exclusive": True},
    },
    "service": {
        "resources": {"nodes": 2, "processes": 2},
        "launch": "torchrun",
        "services": True,
        "site": SITE,
    },
    "ray": {
        "image": "/images/nemo-rl.sqsh",
        "resources": {"nodes": 2, "processes": 1, "gpus": 8},
        "launch": "ray",
        "site": {**SITE, "gres": "gpu:h100:8", "force_squash": True},
    },
}


def make_plan(**changes: Any) -> Plan:
    """A plan of one node."""
    store = changes.get("store", "/mnt/shared/store")
    usual = {"executor": "slurm", "detached": True, "snapshot": snapshot_in(store)}
    return build_plan(usual, **changes)


def compile_text(**changes: Any) -> str:
    return SlurmLauncher().compile(make_plan(**changes)).files["job.sbatch"]


def merge(case: str, nature: str) -> dict[str, Any]:
    site = {**CASES[case].get("site", {}), **NATURES[nature].get("site", {})}
    return {**NATURES[nature], **CASES[case], "site": site}


@pytest.mark.parametrize("nature", NATURES)
@pytest.mark.parametrize("case", CASES)
def test_rendering_is_the_golden_text(case: str, nature: str) -> None:
    request = SlurmLauncher().compile(make_plan(**merge(case, nature)))
    head, _, text = request.render().partition(f"# runs/{request.plan.run_id}/launch.sh\n")
    assert head == f"# runs/{request.plan.run_id}/plan.json\n{request.plan.to_json()}\n"
    path = GOLDEN / f"slurm_{case}_{nature}.txt"
    if "REWRITE_GOLDEN" in os.environ:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("nature", NATURES)
@pytest.mark.parametrize("case", CASES)
def test_every_script_is_one_that_bash_can_read(case: str, nature: str) -> None:
    files = SlurmLauncher().compile(make_plan(**merge(case, nature))).files
    for name in ("launch.sh", "job.sbatch"):
        subprocess.run(["bash", "-n"], input=files[name], text=True, check=True, timeout=120)


def test_a_hostile_value_stays_on_its_line_and_in_its_quotes() -> None:
    text = compile_text(**merge("bare", "hostile"))
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    words = [shlex.split(line.removeprefix("#SBATCH "), comments=True) for line in directives]
    assert all(len(each) == 1 for each in words)
    assert ["--account=an account; touch X"] in words
    assert "--nodes=9" not in text


def test_the_attempt_is_an_argument_and_the_text_is_the_same() -> None:
    first, fourth = (SlurmLauncher().compile(make_plan(), attempt=n) for n in (1, 4))
    assert first.files == fourth.files
    assert (first.argv[-1], fourth.argv[-1]) == ("1", "4")


def test_the_dry_run_says_which_runs_a_job_waits_for() -> None:
    taken = {"slot": "model", "kind": "stone", "source": "run:mill-grow-123/sack"}
    plan = make_plan(inputs=(taken,))
    assert (
        SlurmLauncher()
        .compile(plan)
        .render()
        .endswith(
            "# with --dependency=afterok:JOB --kill-on-invalid-dep=yes for each of these that is"
            " still to complete: mill-grow-123\n"
        )
    )


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("01:02:03", 3723),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-00:00:05", 86405),
    ],
)
def test_limits_as_slurm_writes_them(limit: str, seconds: int) -> None:
    assert count_seconds(limit) == seconds


def test_workers_are_told_no_earlier_than_half_way() -> None:
    assert count_grace(make_plan(site={"time": "04:00:00"})) == 120
    assert count_grace(make_plan(site={"time": "04:00:00", "grace_seconds": 600})) == 600
    assert count_grace(make_plan(site={"time": "00:01:00"})) == 30
    assert "--signal=B:USR1@30" in compile_text(site={"time": "1"})
    assert "--signal" not in compile_text()


@pytest.mark.parametrize(
    ("image", "uri"),
    [
        ("nvcr.io/nvidia/nemo:25.04", "docker://nvcr.io#nvidia/nemo:25.04"),
        ("localhost:5000/me/nemo", "docker://localhost:5000#me/nemo"),
        ("library/ubuntu:24.04", "docker://library/ubuntu:24.04"),
        ("ubuntu", "docker://ubuntu"),
        ("nvcr.io#nvidia/nemo:25.04", "docker://nvcr.io#nvidia/nemo:25.04"),
        ("dockerd://mine:latest", "dockerd://mine:latest"),
    ],
)
def test_references_as_enroot_writes_them(image: str, uri: str) -> None:
    assert write_uri(image) == uri


def refuse(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(ProfileError) as caught:
        SlurmLauncher().compile(make_plan(**changes))
    return [(problem.key, problem.what) for problem in caught.value.problems]


REQUEUE = """
run=/nowhere attempt=/nowhere restart=0 requeues=1 limit=1 ended='' code=1 SLURM_JOB_ID=7
late='' interrupted=''
record() { echo "record $1"; }
finish() { echo "finish $1"; exit "$2"; }
worker() { echo CANCELLED; }
trap 'interrupted=1 late=1' USR2
trap 'interrupted=1 ended=1' TERM
sleep() { command sleep "${1/600/0.6}"; }
"""


ANSWERS = {
    # The warning that workers take too long may come after the job was given back.
    "a late signal": '(sleep 0.1; kill -USR2 "$$"; sleep 0.2; kill -TERM "$$") &',
    # Slurm ends every process of the job, this command before the script.
    "taken back before the answer": '(sleep 0.2; kill -TERM "$$") & return 143',
    "refused at first": 'asked+=x; [ "$asked" = xx ] || return 1; kill -TERM "$$"',
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_job_that_is_given_back_ends_without_another_end(answer: str) -> None:
    script = REQUEUE + f"scontrol() {{\n{ANSWERS[answer]}\n}}\n" + CONCLUDE
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "record REQUEUED\n"), done.stderr


def test_a_job_that_slurm_does_not_take_back_ends_at_its_limit() -> None:
    script = REQUEUE + 'sleep() { echo "sleep $1"; }\nscontrol() { return 1; }\n' + CONCLUDE
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    pauses = [f"sleep {pause}" for pause in (1, 2, 4, 8, 16, 32)]
    expected = ["record REQUEUED", *pauses, "finish TIMEOUT"]
    assert (done.returncode, done.stdout.splitlines()) == (124, expected), done.stderr


def test_a_script_knows_the_place_of_its_job_whatever_the_path_holds() -> None:
    plan = make_plan(**merge("bare", "hostile"))
    (words,) = [
        line
        for line in SlurmLauncher().compile(plan).files["job.sbatch"].splitlines()
        if line.strip().startswith('"$SLURM_JOB_ID" "${SLURM_CLUSTER_NAME:-}"')
    ]
    script = f"printf '{{%s %s %s}}' {words.strip().removesuffix(')')}"
    environment = {"SLURM_JOB_ID": '"id": "7", ', "SLURM_CLUSTER_NAME": '"cluster": "alps", '}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, check=True, timeout=120
    )
    place = {"name": plan.run_id, "folder": str(plan.run_dir)}
    assert json.loads(done.stdout) == {"id": "7", "cluster": "alps", **place}


def test_everything_that_cannot_be_said_is_told_at_once() -> None:
    told = refuse(
        store="/mnt/a\nb",
        workdir="/w",
        image="~/nemo.sqsh",
        mounts=(
            {"source": "data", "target": "/data"},
            {"source": "/a,b", "target": "/b"},
            {"source": "/c", "target": "/c", "volume": "node-nfs:x"},
        ),
        site={"account": "a\nb", "memory": "1\\2"},
        records="/home/me/store",
    )
    assert [key for key, _ in told] == [
        *("account", "memory", "store", "remote_store"),
        *("mounts[0]", "mounts[1]", "mounts[2]", "image"),
    ]


def test_a_store_that_cannot_be_mounted_is_refused_only_with_an_image() -> None:
    assert refuse(store="/mnt/a,b", workdir="/w:x", **IMAGE)[0][0] == "store"
    assert "/mnt/a,b" in compile_text(store="/mnt/a,b")


def test_what_a_mount_covers_is_not_mounted_again() -> None:
    mounts = ({"source": "/mnt", "target": "/mnt"}, {"source": "/home/x", "target": "/work"})
    text = compile_text(**IMAGE, mounts=mounts, workdir="/work", site={"secrets_file": "/h/s"})
    assert "--container-mounts=/mnt:/mnt,/home/x:/work,/work:/work,/h/s:/h/s \\" in text


def test_the_environment_of_sbatch_holds_named_secrets_only() -> None:
    environment = {
        "HOME": "/root",
        "HF_TOKEN": "1",
        "WANDB_API_KEY": "2",
        "SBATCH_ACCOUNT": "x",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/etc/x",
    }
    plan = make_plan(secrets=("HF_TOKEN",))
    assert set(choose_environment(plan, environment)) == {"HOME", "HF_TOKEN", "SLURM_CONF"}
    from_file = plan.model_copy(update={"site": {"secrets_file": "/s"}})
    assert set(choose_environment(from_file, environment)) == {"HOME", "SLURM_CONF"}
