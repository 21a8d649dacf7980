"""What happens inside a pod: the rendered text is run by bash, with what Lepton would set."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemotron_style.runtime.atomic import write_text
from nemotron_style.runtime.errors import StepFailed
from nemotron_style.runtime.launch.bundle import pack, upload

NASTY = "a b'c\"d $(touch X) `touch X`; # ünï, \\ \n next ${HOME} $$ %s"

# Stands in for the worker: it does what its first word says, and tells what it was given.
WORKER = """\
import base64, os, signal, sys, time
say = lambda *words: print(*words, flush=True)
what = os.environ.get("WHAT", "tell")
if what == "tell":
    say("nasty", base64.b64encode(os.environb.get(b"NASTY", b"")).decode())
    say("seat", *(os.environ.get(n, "-") for n in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")))
    say("given", *sys.argv[1:])
if what == "fail":
    print("it broke", file=sys.stderr)
    sys.exit(42)
if what == "watch":
    attempt = os.path.join(os.path.dirname(sys.argv[-1]), "attempts", "1")
    say("ready")
    while not os.path.exists(os.path.join(attempt, "stop")):
        time.sleep(0.01)
    say("saved")
    sys.exit(130)
if what == "save":
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    say("ready")
    while not told:
        time.sleep(0.01)
    say("saved")
    sys.exit(130)
"""


@pytest.fixture
def pod(tmp_path, plan_of, launcher):
    """Start the posted command as a pod would: the body's variables, and nothing of ours."""
    store = tmp_path / "it's a store"
    fake = tmp_path / "python with space"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path}/worker.py "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "worker.py").write_text(WORKER)

    def start(*, index: int = 0, lepton: dict[str, str] | None = None, **changes):
        changes.setdefault("python", str(fake))
        plan = plan_of(**{"store": str(store), "workdir": str(tmp_path), **changes})
        request = launcher.compile(plan)
        folder = Path(plan.record_dir)
        for name, text in request.files.items():
            write_text(folder / name, text)  # at once: another pod may be reading it
        spec = request.body["spec"]
        given = {one["name"]: one["value"] for one in spec["envs"] if "value" in one}
        name = request.body["metadata"]["name"]
        lepton = {"LEPTON_JOB_NAME": name, "LEPTON_JOB_WORKER_INDEX": str(index)} | (lepton or {})
        process = subprocess.Popen(
            spec["container"]["command"],
            env={"PATH": os.environ["PATH"], **given, **lepton},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
        )
        return request, process, Path(plan.run_dir, "attempts", "1")

    return start


def test_hostile_values_arrive_byte_for_byte_and_run_nothing(pod, tmp_path):
    _, process, _ = pod(env={"NASTY": NASTY, "OTHER": "$(touch X)\n;touch X #"})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    sent = next(line for line in output.decode().splitlines() if line.startswith("nasty "))
    assert base64.b64decode(sent.split()[1]) == NASTY.encode()
    assert not list(tmp_path.rglob("X"))


def test_log_goes_to_both_places_and_the_code_is_left(pod):
    _, process, attempt = pod(env={"WHAT": "fail"})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 42
    assert output == b"it broke\n"
    assert (attempt / "log-0.txt").read_bytes() == output
    assert (attempt / "exit-0").read_text() == "42\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_process_passes_the_signal_on_and_waits(pod, number):
    _, process, attempt = pod(env={"WHAT": "save"})
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert output == b"saved\n"
    assert process.returncode == 130
    assert (attempt / "exit-0").read_text() == "130\n"
    assert (attempt / "stop").read_text() == "node 0 was told to end\n"
    assert (attempt / "log-0.txt").read_bytes() == b"ready\nsaved\n"


@pytest.mark.parametrize("count", [2, 5, 20])
def test_many_signals_do_not_confuse_the_exit_code(pod, count):
    _, process, attempt = pod(env={"WHAT": "save"})
    assert process.stdout.readline() == b"ready\n"
    for _ in range(count):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    process.communicate(timeout=120)
    assert (process.returncode, (attempt / "exit-0").read_text()) == (130, "130\n")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({}, "{name}-0.{name}-job-svc"),
        ({"LEPTON_SUBDOMAIN": "sub"}, "{name}-0.sub"),
        ({"LEPTON_JOB_SERVICE_PREFIX": "pre"}, "pre-0.pre-job-svc"),
        ({"LEPTON_JOB_SERVICE_PREFIX": "pre", "LEPTON_SUBDOMAIN": "sub"}, "pre-0.sub"),
    ],
)
def test_each_of_many_knows_its_seat(pod, given, address):
    changes = {"resources": {"nodes": 4, "processes": 8}, "launch": "torchrun"}
    request, process, attempt = pod(index=3, lepton=given, **changes)
    output = process.communicate(timeout=120)[0].decode()
    address = address.format(name=request.body["metadata"]["name"])
    assert f"seat 3 {address} 29400\n" in output
    line = next(line for line in output.splitlines() if line.startswith("given"))
    assert f"--nnodes 4 --node-rank 3 --master-addr {address} --master-port 29400" in line
    assert "--nproc-per-node 8" in line
    assert (attempt / "exit-3").read_text() == "0\n"
    assert (attempt / "log-3.txt").read_text() == output


def test_uploaded_job_is_fetched_proved_and_laid_out(pod, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "away"
    folder = f"file://{tmp_path}/bucket"
    snapshot = {"path": f"{store}/code/0123456789abcdef", "digest": "0123456789abcdef" * 4}
    changes = {
        "store": str(store),
        "records": str(tmp_path / "here"),
        "snapshot": snapshot,
        "python": sys.executable,
        "site": {"upload": folder},
    }
    request, process, _ = pod(**changes)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 1
    assert "FileNotFoundError" in output  # nothing was uploaded yet
    assert not store.exists()

    assert upload(request.bundle, folder) is True
    assert upload(request.bundle, folder) is False
    _, process, _ = pod(**changes)
    output = process.communicate(timeout=120)[0].decode()
    run = store / "runs" / request.plan.run_id
    assert (run / "plan.json").read_text() == request.plan.to_json()
    assert (run / "launch.sh").read_text() == request.files["launch.sh"]
    assert (store / "code/0123456789abcdef/milling/recipe.py").read_text() == "print('milling')\n"
    assert sorted(path.name for path in run.iterdir()) == ["attempts", "launch.sh", "plan.json"]
    assert (run / "attempts/1/log-0.txt").read_text() == output  # the worker had its say


def test_a_changed_archive_is_not_unpacked(pod, tmp_path):
    store, folder = tmp_path / "away", tmp_path / "bucket"
    site = {"upload": f"file://{folder}"}
    changes = {"store": str(store), "records": str(tmp_path / "here"), "python": sys.executable}
    request, process, _ = pod(**changes, site=site)
    process.communicate(timeout=120)
    folder.mkdir()
    other = gzip.compress(pack({"runs/x": b"something else"}).content)
    (folder / request.bundle.name).write_bytes(other)
    _, process, _ = pod(**changes, site=site)
    output = process.communicate(timeout=120)[0].decode()
    assert "the content is not what its name says" in output
    assert not store.exists()
    assert upload(request.bundle, site["upload"]) is True  # and the next upload mends it
    assert gzip.decompress((folder / request.bundle.name).read_bytes()) == request.bundle.content
    assert os.listdir(folder) == [request.bundle.name]


def test_the_same_files_are_the_same_bundle_and_others_are_not():
    first = pack({"b": b"2", "a": b"1"})
    assert first == pack({"a": b"1", "b": b"2"})
    assert first.digest != pack({"a": b"1", "b": b"3"}).digest
    assert first.digest != pack({"a": b"1", "c": b"2"}).digest


def test_a_bundle_reaches_any_filesystem_and_says_when_it_does_not():
    import fsspec

    bundle = pack({"a": b"1"})
    assert upload(bundle, "memory://somewhere/jobs") is True
    assert upload(bundle, "memory://somewhere/jobs/") is False
    files = fsspec.filesystem("memory")
    assert [Path(name).name for name in files.ls("/somewhere/jobs", detail=False)] == [bundle.name]
    with pytest.raises(StepFailed, match="the code cannot be uploaded"):
        upload(bundle, "nosuch://bucket")


RAY = """\
#!/bin/sh
echo "ray $*"
[ "$1" != status ] || echo " 0.0/2.0 worker_units"
"""


@pytest.fixture
def cluster(pod, tmp_path, monkeypatch):
    """Two pods of a step that wants Ray, with a stand-in for its command."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text(RAY)
    (tmp_path / "bin" / "ray").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    changes = {"resources": {"nodes": 2, "processes": 1}, "launch": "ray"}

    def start(**env):
        return [pod(index=index, env=env, **changes) for index in (0, 1)]

    return start


def test_ray_forms_a_cluster_of_pods(cluster):
    (request, first, attempt), (_, second, _) = cluster(WHAT="tell")
    output, other = (one.communicate(timeout=120)[0].decode() for one in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), output + other
    name = request.body["metadata"]["name"]
    address = f"{name}-0.{name}-job-svc"
    assert f"ray start --head --node-ip-address={address} --port=29400" in output
    assert "ray: 2 worker units" in output
    assert output.count("given -m nemotron_style.runtime.worker") == 1
    assert f"ray start --address={address}:29400" in other
    assert "given" not in other
    assert (attempt / "exit-0").read_text() == (attempt / "exit-1").read_text() == "0\n"


def test_ray_saves_before_its_pods_leave(cluster):
    (_, first, attempt), (_, second, _) = cluster(WHAT="watch")
    for pod, sign in ((first, b"ready"), (second, b"ray start --address")):
        while sign not in pod.stdout.readline():  # a shell that only begins is ended by SIGTERM
            assert pod.poll() is None
    for pod in (second, first):
        pod.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=120)
    assert b"saved\n" in output
    assert first.returncode == 130
    second.communicate(timeout=120)
    assert (second.returncode, (attempt / "exit-0").read_text()) == (0, "130\n")
