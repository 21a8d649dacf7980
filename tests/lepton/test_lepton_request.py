"""What is shown and posted: names, the body, delivery, and what is refused beforehand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch.lepton.job import LONGEST_NAME, name_job

GOLDEN = Path(__file__).parents[1] / "golden" / "launch"
NASTY = "a b'c\"d $(touch X) `touch X`; # ünï, \\ \n next ${HOME} $$ %s"
HOSTILE = {
    "store": '/mnt/sha red/it\'s "here"; touch X #/störe',
    "env": {"NASTY": NASTY, "OMP_NUM_THREADS": "1"},
    "setup": ("echo 'set up'",),
    "image": "nvcr.io/nvidia/nemo:25.04; $(touch X)",
    "secrets": ("HF_TOKEN",),
}
CASES = {
    "one": {},
    "four": {"resources": {"nodes": 4, "processes": 8}, "launch": "torchrun"},
    "ray": {"resources": {"nodes": 2, "processes": 1, "gpus": 8}, "launch": "ray"},
    "service": {"services": True},
    "upload": {"site": {"upload": "s3://bucket/jobs"}, "records": "/home/me/store"},
}


def words(error: ProfileError) -> str:
    return " | ".join(str(problem) for problem in error.problems)


@pytest.mark.parametrize("nature", ["plain", "hostile"])
@pytest.mark.parametrize("case", CASES)
def test_rendering_is_the_golden_text(plan_of, launcher, case, nature):
    changes = {**(HOSTILE if nature == "hostile" else {}), **CASES[case]}
    store = changes.get("store", "/mnt/shared/store")
    snapshot = {"path": f"{store}/code/0123456789abcdef", "digest": "0123456789abcdef" * 4}
    request = launcher.compile(plan_of(**changes, snapshot=snapshot))
    text = request.render()
    plan, _, text = text.partition("# runs/sft-chat-b3a6cd7d00c2/launch.sh\n")
    assert plan == f"# runs/{request.plan.run_id}/plan.json\n{request.plan.to_json()}\n"
    if request.bundle:  # its digest is that of the plan too, which has a test of its own
        text = text.replace(request.bundle.digest, "DIGEST")
        label = request.body["metadata"]["labels"]["nemotron-style.body"]
        text = text.replace(label, "BODY")
    path = GOLDEN / f"lepton_{case}_{nature}.txt"
    if "REWRITE_GOLDEN" in os.environ:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_body_holds_what_the_profile_says(plan_of, launcher):
    site = {
        "shared_memory_mb": 65536,
        "priority": "mid-4000",
        "node_reservation": "res-1",
        "image_pull_secrets": ["ngc"],
        "custom_spec": {
            "queue_config": {"can_preempt": True},
            "container": {"ports": [{"container_port": 8080}]},
            "ttl_seconds_after_finished": 60,
        },
    }
    mounts = (
        {"source": "/team", "target": "/mnt/shared", "volume": "node-nfs:lustre"},
        {"source": "/", "target": "/data", "volume": "node-local", "options": ("ro",)},
    )
    plan = plan_of(site=site, mounts=mounts, secrets=("HF_TOKEN",))
    body = launcher.compile(plan, attempt=3).body
    name = body["metadata"]["name"]
    assert body["metadata"]["id"] == name
    assert body["metadata"]["labels"]["nemotron-style.attempt"] == "3"
    assert body["metadata"]["labels"]["nemotron-style.step"] == "sft.chat"
    assert body["metadata"]["labels"]["nemotron-style.run"] == plan.run_id
    assert body["spec"] == {
        "resource_shape": "gpu.8xh100-80gb",
        "affinity": {"allowed_dedicated_node_groups": ["ng-1"]},
        "container": {
            "image": "nvcr.io/nvidia/nemo:25.04",
            "command": ["/bin/bash", "-c", f"exec bash {plan.run_dir}/launch.sh"],
            "ports": [{"container_port": 8080}],
        },
        "completions": 1,
        "parallelism": 1,
        "max_failure_retry": 0,
        "max_job_failure_retry": 0,
        "envs": [
            {"name": "NEMOTRON_STYLE_ATTEMPT", "value": "3"},
            {"name": "HF_TOKEN", "value_from": {"secret_name_ref": "HF_TOKEN"}},
        ],
        "mounts": [
            {"path": "/team", "from": "node-nfs:lustre", "mount_path": "/mnt/shared"},
            {
                "path": "/",
                "from": "node-local",
                "mount_path": "/data",
                "mount_options": {"read_only": True},
            },
        ],
        "image_pull_secrets": ["ngc"],
        "shared_memory_size": 65536,
        "ttl_seconds_after_finished": 60,
        "log": {"enable_collection": True, "save_termination_logs": True},
        "queue_config": {"priority_class": "mid-4000", "can_preempt": True},
        "reservation_config": {"reservation_id": "res-1"},
    }


def test_dry_run_text_is_the_body(plan_of, launcher):
    request = launcher.compile(plan_of())
    assert json.loads(request.files["lepton.json"]) == request.body
    assert request.files["lepton.json"].rstrip() in request.render()
    assert request.render().endswith("$ POST /jobs @lepton.json\n")


@pytest.mark.parametrize(
    "step", ["sft/chat", "3d/x", "data/a_very_long_name/indeed-it-is/long", "Ä", "by-lepton"]
)
def test_name_is_one_that_lepton_takes(plan_of, step):
    name = name_job(plan_of(step=step), 1)
    assert len(name) <= LONGEST_NAME
    assert re.fullmatch(r"[a-z][a-z0-9-]*[a-z0-9]", name)
    assert not name.endswith("by-lepton")


def test_name_differs_by_attempt_and_by_store_and_else_stays(plan_of):
    names = [
        name_job(plan_of(), 1),
        name_job(plan_of(), 2),
        name_job(plan_of(store="/mnt/other/store"), 1),
        name_job(plan_of(records="/home/me/store"), 1),
    ]
    assert len(set(names)) == 4
    assert name_job(plan_of(), 1) == names[0]
    assert names[0].startswith("sft-chat-")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": None}, "profile cloud: image: a Lepton job needs a container image"),
        ({"site": {"resource_shape": None}}, "resource_shape: a Lepton job needs one"),
        ({"site": {"max_requeues": 2}}, "max_requeues: Lepton does not put a job back"),
        ({"site": {"priority": "urgent"}}, "priority: is no priority of Lepton; got 'urgent'"),
        ({"site": {"priority": "low-1000", "node_group": None}}, "priority: needs a node_group"),
        ({"site": {"node_group": "ng\n-1"}}, r"node_group: holds a line break"),
        ({"site": {"resource_shape": " gpu"}}, "resource_shape: begins or ends with a space"),
        ({"image": "a\tb"}, r"image: holds a line break or another control character"),
        ({"store": "/home/me/store", "mounts": ()}, "store: is not on a mount"),
        ({"site": {"upload": "s3://b"}}, "remote_store: an uploaded job keeps its results"),
        ({"store": "/mnt/$HOME/store"}, "store: holds a $"),
        ({"env": {"LEPTON_JOB_NAME": "x"}}, "env.LEPTON_JOB_NAME: is a name that Lepton keeps"),
        ({"secrets": ("LEPTON_WORKSPACE_ID",)}, "secrets.LEPTON_WORKSPACE_ID: is a name that"),
        ({"site": {"custom_spec": {"envs": []}}}, "custom_spec.envs: is set by env and secrets"),
        (
            {"site": {"custom_spec": {"container": {"image": "x"}}}},
            "custom_spec.container.image: is set by image",
        ),
        (
            {"site": {"custom_spec": {"ttl_second_after_finished": 1}}},
            "is not a key of Lepton's jobs; did you mean 'ttl_seconds_after_finished'?",
        ),
        (
            {"site": {"custom_spec": {"log": {"enable_colection": True}}}},
            "custom_spec.log.enable_colection: is not a key of log; did you mean",
        ),
        ({"site": {"custom_spec": {"log": True}}}, "custom_spec.log: must be a table"),
    ],
)
def test_refused_before_anything_happens(plan_of, launcher, workspace, changes, told):
    with pytest.raises(ProfileError) as caught:
        launcher.compile(plan_of(**changes))
    assert told in words(caught.value)
    assert workspace.calls == []


@pytest.mark.parametrize(
    ("mount", "told"),
    [
        ({"source": "team"}, "mounts[1].path: must be an absolute path; got 'team'"),
        ({"target": "data"}, "mounts[1].mount_path: must be an absolute path"),
        ({"target": "/opt"}, "mounts[1].mount_path: is a path that the system"),
        ({"target": "/data/../usr/"}, "mounts[1].mount_path: is a path that the system"),
        ({"target": "//"}, "mounts[1].mount_path: is a path that the system"),
        ({"target": "/mnt/shared/"}, "mounts[1]: mounts to the same path as mounts[0]"),
        ({"volume": None}, "mounts[1].from: names no volume"),
        ({"volume": "node-nfs"}, "mounts[1].from: is no volume"),
        ({"volume": "node-nfs: "}, "mounts[1].from: is no volume"),
        ({"volume": "node-nfs:a:b"}, "mounts[1].from: is no volume"),
        ({"options": ("ro", "rprivate")}, "Lepton has no such option; got rprivate"),
    ],
)
def test_mounts_that_lepton_refuses(plan_of, launcher, mount, told):
    first = {"source": "/team", "target": "/mnt/shared", "volume": "node-nfs:lustre"}
    second = {"source": "/x", "target": "/opt/data", "volume": "node-local", **mount}
    with pytest.raises(ProfileError) as caught:
        launcher.compile(plan_of(mounts=(first, second)))
    assert told in words(caught.value)


def test_a_folder_below_a_system_path_is_fine(plan_of, launcher):
    first = {"source": "/team", "target": "/mnt/shared", "volume": "node-nfs:lustre"}
    second = {"source": "/x", "target": "/opt/data", "volume": "node-local"}
    mounts = launcher.compile(plan_of(mounts=(first, second))).body["spec"]["mounts"]
    assert [mount["mount_path"] for mount in mounts] == ["/mnt/shared", "/opt/data"]


def test_everything_is_said_at_once(plan_of, launcher):
    site = {"resource_shape": None, "max_requeues": 1}
    with pytest.raises(ProfileError) as caught:
        launcher.compile(plan_of(image=None, site=site, mounts=()))
    assert {problem.key for problem in caught.value.problems} == {
        "image",
        "resource_shape",
        "max_requeues",
        "store",
    }


def test_a_variable_has_a_longest_size(plan_of, launcher):
    fits = "x" * (131_072 - len("A=") - 1)
    launcher.compile(plan_of(env={"A": fits}))
    with pytest.raises(ProfileError, match="131073 bytes long with its name, and 131072 is"):
        launcher.compile(plan_of(env={"A": fits + "x"}))


def test_a_command_has_a_longest_size(plan_of, launcher):
    store = "/mnt/shared/" + "d/" * 70_000 + "s"
    mount = {"source": "/team", "target": "/mnt/shared", "volume": "node-nfs:lustre"}
    with pytest.raises(ProfileError, match=r"the command is 14\d{4} bytes long"):
        launcher.compile(plan_of(store=store, mounts=(mount,)))


def test_uploaded_jobs_get_their_environment_before_the_script(plan_of, launcher):
    env = {"AWS_ENDPOINT_URL": "https://s3", "PRICE": "5$"}
    plan = plan_of(env=env, site={"upload": "s3://b/j/"}, records="/home/me/store")
    request = launcher.compile(plan)
    names = [variable["name"] for variable in request.body["spec"]["envs"]]
    assert names == ["NEMOTRON_STYLE_ATTEMPT", "AWS_ENDPOINT_URL"]
    assert "export PRICE='5$'" in request.files["launch.sh"]
    assert f"s3://b/j/{request.bundle.name}" in request.body["spec"]["container"]["command"][2]


def test_compiling_imports_no_sdk():
    code = (
        "import sys; sys.modules['leptonai'] = None; sys.modules['requests'] = None\n"
        "import nemotron_style.runtime.launch.lepton.launcher as lepton\n"
        "from nemotron_style.runtime.errors import UsageError\n"
        "try:\n    lepton.connect()\nexcept UsageError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'nemotron-style[lepton]'" in done.stdout
    assert "environment of its own" in done.stdout
