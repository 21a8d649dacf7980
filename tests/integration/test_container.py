"""Runs in a real container, where podman works; else these are skipped."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.session import kill_job
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.process import is_alive
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import list_runs
from nemotron_style.runtime.store.store import Store
from waiting import until

Capture = pytest.CaptureFixture[str]
IMAGE = "localhost/steps-test:1"
NASTY = "a b'c\"d $(touch X) `touch X`; # ünï, \\ \n next $HOME $$ %s"
ENGINE = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
cgroups = "enabled"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{0}/graph"\nrunroot = "{0}/run"\n'


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An engine with a storage of its own, and an image into which this machine is mounted."""
    if shutil.which("podman") is None:
        pytest.skip("podman is not installed")
    home = tmp_path_factory.mktemp("podman")
    (home / "containers.conf").write_text(ENGINE)
    (home / "storage.conf").write_text(STORAGE.format(home))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(home / "containers.conf"))
        patch.setenv("CONTAINERS_STORAGE_CONF", str(home / "storage.conf"))
        problem = import_image() or call("run", "--rm", *mounts("--volume"), IMAGE, "true")
        if problem:
            pytest.skip(f"podman does not run here: {problem.splitlines()[-1]}")
        yield
        call("rm", "--all", "--force")


def call(*words: str, feed: bytes = b"") -> str:
    """What podman complains of; nothing when all went well."""
    done = subprocess.run(["podman", *words], input=feed, capture_output=True, timeout=300)
    return done.stderr.decode() or "failed" if done.returncode else ""


def import_image() -> str:
    """A root of empty directories, and links as this machine has them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("usr", "proc", "sys", "dev", "tmp", "run", "etc"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
    return call("import", "-", IMAGE, feed=packed.getvalue())


def mounts(flag: str = "") -> list[str]:
    """Where the interpreter and its packages lie."""
    roots = {"/usr", sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix)}
    outer = [one for one in roots if not any(one.startswith(f"{other}/") for other in roots)]
    said = [f"{path}:{path}:ro" for path in sorted(outer)]
    return [word for one in said for word in ([flag, one] if flag else [one])]


@pytest.fixture
def boxed(mill: Any, podman: None) -> Iterator[Any]:
    """The mill with a profile ``box`` whose jobs run in the image."""
    profile = {
        "executor": '"local"',
        "engine": '"podman"',
        "image": f'"{IMAGE}"',
        "python": json.dumps(sys.executable),
        "mounts": json.dumps(mounts()),
        "setup": json.dumps(
            ['printf %s "$NASTY" > nasty.txt', "cat /proc/self/mountinfo > seen.txt"]
        ),
        "env": "{ NASTY = " + json.dumps(NASTY) + " }",
        "secrets": '["MILL_TOKEN"]',
        "grace_seconds": "60",
    }
    lines = [f"{key} = {value}" for key, value in profile.items()]
    mill.write("env.toml", "\n".join(["[box]", *lines]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILL_TOKEN", "hush-hush-hush")
        yield mill
    for run in list_runs(mill.home):
        for attempt in run.attempts:
            launcher = attempt.record.get("launcher", {})
            if attempt.record.get("detached") and is_alive(launcher):
                os.kill(launcher["pid"], signal.SIGKILL)
            kill_job(attempt)


def held(mill: Any) -> list[str]:
    return ["mill/grow", "hold_at=3", f"gate={mill.root}/gate", "save_every=1"]


def submit_held(mill: Any, capsys: Capture) -> tuple[RunFolder, Attempt]:
    capsys.readouterr()
    assert main(["steps", "run", *held(mill), "-b", "box", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    folder = RunFolder(Path(run["path"]))
    attempt = folder.last_attempt
    assert attempt is not None
    until(lambda: "holding" in attempt.log.read_text() or read_status(folder).is_final)
    assert read_status(folder).state == "RUNNING", attempt.log.read_text()
    return folder, attempt


def containers() -> list[str]:
    told = subprocess.run(
        ["podman", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True
    )
    return told.stdout.split()


def test_an_attached_run_in_a_container(boxed: Any, capsys: Capture) -> None:
    assert main(["steps", "run", "mill/bake", "-r", "box"]) == 0
    assert "mill-bake-default:v1" in capsys.readouterr().out
    assert (boxed.root / "nasty.txt").read_bytes() == NASTY.encode()
    assert f" {boxed.root} " in (boxed.root / "seen.txt").read_text()  # it was in the container
    assert main(["steps", "run", "mill/bake"]) == 0  # without one it is the same run
    assert "reuse" in capsys.readouterr().out
    assert not {"X", "PWN"} & {path.name for path in boxed.root.rglob("*")}
    until(lambda: containers() == [])


def test_an_image_that_is_not_there_stops_it_before_it_starts(boxed: Any, capsys: Capture) -> None:
    text = (boxed.root / "env.toml").read_text()
    boxed.write("env.toml", text.replace(IMAGE, "localhost/nowhere:2"))
    assert main(["steps", "run", "mill/grow", "-r", "box"]) == 2
    assert "podman pull localhost/nowhere:2" in capsys.readouterr().err
    assert not (boxed.home / "runs").exists()


def test_a_detached_run_in_a_container_is_known_outside(boxed: Any, capsys: Capture) -> None:
    folder, attempt = submit_held(boxed, capsys)
    owner = attempt.owner or {}
    assert is_alive(owner)
    line = Path(f"/proc/{owner['pid']}/cmdline").read_text().split("\0")
    assert str(folder.path / "plan.json") in line
    environment = Path(f"/proc/{owner['pid']}/environ").read_text()
    assert "MILL_TOKEN=hush-hush-hush" in environment
    assert containers() == [attempt.job["id"]]
    (boxed.root / "gate").write_text("")
    until(lambda: read_status(folder).is_final)
    assert read_status(folder).state == "COMPLETED"
    until(lambda: containers() == [])


def test_cancel_reaches_the_worker_which_saves(boxed: Any, capsys: Capture) -> None:
    folder, _ = submit_held(boxed, capsys)
    assert main(["runs", "cancel", folder.run_id]) == 0
    assert read_status(folder).reason == "stopped after step 3"
    assert (folder.path / "checkpoints/step-00000003").is_dir()
    until(lambda: containers() == [])


def test_force_ends_the_container(boxed: Any, capsys: Capture) -> None:
    recipe = boxed.root / "code/milling/recipe.py"
    recipe.write_text(recipe.read_text().replace(" and not ctx.stopping:", ":"))
    folder, attempt = submit_held(boxed, capsys)
    assert main(["runs", "cancel", folder.run_id, "--force"]) == 0
    assert read_status(folder).state == "CANCELLED"
    until(lambda: not is_alive(attempt.owner or {}))
    until(lambda: containers() == [])


def test_a_container_whose_supervisor_and_client_died_is_lost_and_cancelled(
    boxed: Any, capsys: Capture
) -> None:
    folder, attempt = submit_held(boxed, capsys)
    os.kill(attempt.record["launcher"]["pid"], signal.SIGKILL)
    os.kill(attempt.child["pid"], signal.SIGKILL)
    until(lambda: read_status(folder).live)
    assert read_status(folder).state == "LOST"
    assert main(["runs", "cancel", folder.run_id]) == 0
    assert read_status(folder).state == "CANCELLED"
    assert (folder.path / "checkpoints/step-00000003").is_dir()


def test_a_service_runs_in_the_container_of_its_step(press: Any, boxed: Any) -> None:
    assert main(["steps", "run", "mill/press", "-r", "box"]) == 0
    artifact = press.store.resolve("mill-press-default")
    assert (artifact.path / "sack.txt").read_text().startswith("3 mill-grow")
    (run,) = list_runs(press.home, step="mill/press")
    service = RunFolder(run.path / "services" / "power").last_attempt
    assert service.record["state"] == "COMPLETED"


def test_an_exit_code_comes_through(boxed: Any, capsys: Capture) -> None:
    text = (boxed.root / "env.toml").read_text()
    boxed.write("env.toml", text.replace("setup = [", 'setup = ["exit 42", '))
    assert main(["steps", "run", "mill/grow", "-r", "box"]) == 1
    (run,) = list_runs(boxed.home)
    assert (read_status(run).state, read_status(run).exit_code) == ("FAILED", 42)


@pytest.mark.parametrize("name", ['sp ace, "q"; touch PWN\n#\'s', "co:lon $(touch PWN)"])
def test_a_project_in_a_hostile_place(
    boxed: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    moved = type(boxed)(boxed.root.parent / name)
    os.rename(boxed.root, moved.root)
    monkeypatch.chdir(moved.root)
    monkeypatch.syspath_prepend(str(moved.root / "code"))
    monkeypatch.setenv("PYTHONPATH", str(moved.root / "code"))
    words = ["steps", "run", "mill/bake", "-r", "box", "--", NASTY]
    if ":" in name:  # which PYTHONPATH cannot hold
        assert main(words) == 2
        assert "cannot hold a path with a colon" in capsys.readouterr().err
        monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(moved.root.parent / "store"))
    assert main(words) == 0, capsys.readouterr()
    home = moved.root.parent / "store" if ":" in name else moved.home
    made = Store(home).resolve("mill-bake-default.chaff").path / "chaff.txt"
    assert made.read_bytes() == NASTY.encode()
    assert (moved.root / "nasty.txt").read_bytes() == NASTY.encode()
    assert not {"X", "PWN"} & {path.name for path in moved.root.parent.rglob("*")}
