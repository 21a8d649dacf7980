"""Containers: what is mounted and how it is said, what is refused, and what is looked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.launch.container import (
    Bind,
    check_container,
    choose_engine,
    kill_container,
    list_binds,
    name_container,
    write_bind,
    write_run,
)
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest
from nemotron_style.runtime.run.plan import Plan


def plan_in_image(mill: Any, *mounts: Any, **changes: Any) -> Plan:
    profile: dict[str, Any] = {"image": "img:1", "engine": "docker", "mounts": mounts}
    place = {name: changes.pop(name) for name in ("store", "workdir", "site") if name in changes}
    context = mill.context(**{**profile, **changes})
    plan = compile_pipeline(RunRequest("mill/grow"), context=context).target.plan
    assert isinstance(plan, Plan)
    return plan.model_copy(update={name: place[name] for name in place})


def mount(source: Any, target: Any, *options: str) -> dict[str, Any]:
    return {"source": str(source), "target": str(target), "options": options}


def places(plan: Plan) -> list[tuple[str, str]]:
    return [(bind.source, bind.target) for bind in list_binds(plan)]


def test_one_mount_covers_what_lies_below_it(mill: Any) -> None:
    plan = plan_in_image(mill)
    assert plan.snapshot is not None
    assert Path(plan.snapshot.path).is_relative_to(plan.store)
    assert places(plan) == [(str(mill.root), str(mill.root))]


def test_places_apart_are_mounted_apart(mill: Any, tmp_path: Path) -> None:
    plan = plan_in_image(mill, workdir=str(tmp_path / "a"), store=str(tmp_path / "b"))
    assert places(plan) == [(f"{tmp_path}/{name}",) * 2 for name in "ab"]


def test_a_similar_name_is_not_below(mill: Any, tmp_path: Path) -> None:
    plan = plan_in_image(mill, workdir=f"{tmp_path}/a", store=f"{tmp_path}/ab")
    assert len(places(plan)) == 2


def test_a_mount_of_the_profile_covers_too(mill: Any) -> None:
    above = mill.root.parent
    assert places(plan_in_image(mill, mount(above, above))) == [(str(above), str(above))]


def test_one_that_is_read_only_does_not(mill: Any) -> None:
    above = mill.root.parent
    plan = plan_in_image(mill, mount(above, above, "ro"))
    assert places(plan) == [(str(mill.root),) * 2, (str(above),) * 2]


def test_one_that_shows_something_else_there_does_not(mill: Any, tmp_path: Path) -> None:
    plan = plan_in_image(mill, mount(tmp_path / "other", mill.root.parent))
    assert (str(mill.root), str(mill.root)) in places(plan)


def test_a_store_behind_a_link_is_mounted_itself(mill: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mill.home.symlink_to(disk)
    plan = plan_in_image(mill, store=str(mill.home))
    assert places(plan) == [(str(mill.root),) * 2, (str(mill.home),) * 2]


def test_the_work_directory_may_be_another_in_the_image(mill: Any, tmp_path: Path) -> None:
    plan = plan_in_image(mill, mount(tmp_path / "src", "/work"), workdir="/work")
    assert places(plan) == [(str(mill.home),) * 2, (f"{tmp_path}/src", "/work")]


def test_the_secrets_file_is_mounted_and_nothing_handed_on(mill: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "secrets")
    plan = plan_in_image(mill, secrets=("TOKEN",), secrets_file=path)
    assert (path, path) in places(plan)
    argv = write_run(plan, 1)
    assert f"{path}:{path}:ro" in argv
    assert "TOKEN" not in argv


@pytest.mark.parametrize(
    ("bind", "engine", "said"),
    [
        (Bind("/a", "/b"), "docker", ("--volume", "/a:/b")),
        (Bind("/a", "/b", ("ro", "z")), "podman", ("--volume", "/a:/b:ro,z")),
        (Bind('/a,"b" \n', "/b"), "podman", ("--volume", '/a,"b" \n:/b')),
        (Bind("/a:1", "/b", ("rw",)), "podman", ("--mount", "type=bind,source=/a:1,target=/b")),
        (
            Bind('/a:"1",\n', "/b", ("ro", "rslave")),
            "docker",
            (
                "--mount",
                'type=bind,"source=/a:""1"",\n",target=/b,readonly,bind-propagation=rslave',
            ),
        ),
    ],
)
def test_a_mount_is_said_in_the_way_that_can_hold_it(
    bind: Bind, engine: str, said: tuple[str, str]
) -> None:
    assert write_bind(bind, engine, where="profile x") == said


@pytest.mark.parametrize(
    ("bind", "engine", "what"),
    [
        (Bind("/a:,", "/b", key="mounts[3]"), "podman", r"profile x: mounts\[3\]: .*also ','"),
        (Bind("/a", "/b:\n", key="workdir"), "podman", r"profile x: workdir: .*'\\n'"),
        (Bind("/a:", "/b", ("z",), "mounts[0]"), "docker", r"path with a colon; got z"),
    ],
)
def test_what_neither_way_holds_is_refused(bind: Bind, engine: str, what: str) -> None:
    with pytest.raises(ProfileError, match=what):
        write_bind(bind, engine, where="profile x")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"workdir": "/"}, r"workdir: is the root directory, which would hide the image"),
        ({"image": "--privileged"}, r"image: cannot begin with a dash"),
        (
            {"mounts": ({"source": "/a", "target": "/b", "volume": "node-nfs:x"},)},
            r"mounts\[0\]: only Lepton",
        ),
    ],
)
def test_what_cannot_be_is_refused(mill: Any, change: dict[str, Any], what: str) -> None:
    plan = Plan.model_validate(plan_in_image(mill).model_dump() | change)
    with pytest.raises(ProfileError, match=what):
        LocalLauncher().compile(plan)


@pytest.mark.parametrize("options", [("ro",), ()])
def test_the_store_cannot_be_hidden(mill: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = mill.home if options else tmp_path
    with pytest.raises(ProfileError, match=r"mounts\[0\]: the store .* must be there itself"):
        write_run(plan_in_image(mill, mount(source, mill.home, *options)), 1)


def test_nothing_of_it_enters_the_fingerprint(mill: Any) -> None:
    bare = mill.compile("mill/grow").target.plan
    assert plan_in_image(mill, mount("/a", "/b")).fingerprint == bare.fingerprint


def test_only_names_of_secrets_are_written(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILL_TOKEN", "the value")
    request = LocalLauncher().compile(plan_in_image(mill, secrets=("MILL_TOKEN",)))
    at = request.argv.index("MILL_TOKEN")
    assert request.argv[at - 1] == "--env"
    assert "the value" not in request.render()


def test_gpus_are_handed_over_only_when_there_are_some(mill: Any) -> None:
    assert "--gpus" not in write_run(plan_in_image(mill, gpus_per_node=0), 1)
    assert "--gpus" in write_run(plan_in_image(mill, gpus_per_node=2), 1)
    argv = write_run(plan_in_image(mill, gpus_per_node=2, engine="podman"), 1)
    assert "nvidia.com/gpu=all" in argv


def test_root_needs_no_mapping(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for engine in ("docker", "podman"):
        argv = write_run(plan_in_image(mill, engine=engine), 1)
        assert {"--user", "--userns"} & set(argv) == set()


def install(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called ``name``, found before all others."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_docker_is_taken_before_podman_and_the_profile_before_both(
    mill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in_image(mill, engine=None)
    bins = tmp_path / "bin"
    install(bins, "podman", "exit 0", monkeypatch)
    monkeypatch.setenv("PATH", str(bins))
    assert choose_engine(plan) == "podman"
    (bins / "docker").symlink_to(bins / "podman")
    assert choose_engine(plan) == "docker"
    assert choose_engine(plan_in_image(mill, engine="podman")) == "podman"


def test_a_name_tells_store_run_and_attempt_apart(mill: Any) -> None:
    plan = plan_in_image(mill)
    names = {name_container(plan, 1), name_container(plan, 2)}
    names.add(name_container(plan.model_copy(update={"store": "/elsewhere"}), 1))
    assert len(names) == 3
    assert all(name.startswith(plan.run_id) for name in names)


def problems(plan: Plan) -> list[str]:
    return [str(problem) for problem in check_container(plan)]


def test_a_missing_engine_is_told_with_the_way_to_get_it(
    mill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, open_ = plan_in_image(mill, engine="podman"), plan_in_image(mill, engine=None)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    told = "profile local: engine: podman is not installed; see https://podman.io"
    assert problems(named)[0].startswith(told)
    assert "neither docker nor podman is installed" in problems(open_)[0]


def test_a_missing_image_is_told_with_the_command_that_fetches_it(
    mill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'echo "Error: No such image: $3" >&2; exit 1'
    install(tmp_path / "bin", "docker", script, monkeypatch)
    (told,) = problems(plan_in_image(mill))
    assert told == "profile local: image: docker does not have it; got img:1; docker pull img:1"


def test_an_engine_that_does_not_answer_is_told_in_its_words(
    mill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'echo "Cannot connect to the Docker daemon" >&2; exit 1'
    install(tmp_path / "bin", "docker", script, monkeypatch)
    (told,) = problems(plan_in_image(mill))
    assert told.endswith("engine: docker does not answer: Cannot connect to the Docker daemon")


def test_sources_of_mounts_must_be_there(
    mill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "bin", "docker", "exit 0", monkeypatch)
    assert problems(plan_in_image(mill, mount(tmp_path, "/a"))) == []
    (told,) = problems(plan_in_image(mill, mount(tmp_path, "/a"), mount("/no/where", "/b")))
    assert told == "profile local: mounts[1]: there is no such file or directory; got /no/where"


def test_killing_goes_to_the_engine_and_tells_whether_it_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'echo "$@" >> {tmp_path}/calls; test "$2" = there'
    install(tmp_path / "bin", "podman", script, monkeypatch)
    assert kill_container({"engine": "podman", "id": "there"})
    assert not kill_container({"engine": "podman", "id": "gone"})
    assert not kill_container({"engine": "nowhere", "id": "there"})
    assert not kill_container({"id": "12"})
    assert (tmp_path / "calls").read_text() == "kill there\nkill gone\n"


class FakeDaemon(BaseHTTPRequestHandler):
    """Takes down what docker's own client makes of a command line, and refuses it."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.reply(200, b"")

    do_GET = do_HEAD

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.created.append(json.loads(body))  # type: ignore[attr-defined]
        self.reply(500, b'{"message": "seen"}')

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What docker's client asks a daemon to create."""
    if shutil.which("docker") is None:
        pytest.skip("docker's client is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeDaemon)
    server.created = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    yield server.created  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def run_docker(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_dockers_own_client_reads_it_as_it_is_meant(
    mill: Any, tmp_path: Path, daemon: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(os, "getgid", lambda: 100)
    monkeypatch.setenv("MILL_TOKEN", "the value")
    monkeypatch.setenv("NEMOTRON_STYLE_ATTEMPT", "2")
    easy, hard = f'{tmp_path}/a, "b";$(x)\n #', f'{tmp_path}/c:1, "d"=\n x'
    mounts = (mount(easy, "/easy", "ro"), mount(hard, "/hard: ,", "ro", "rslave"))
    plan = plan_in_image(mill, *mounts, secrets=("MILL_TOKEN",), gpus_per_node=1)
    done = run_docker(write_run(plan, 2))
    assert "seen" in done.stderr
    (created,) = daemon
    host = created["HostConfig"]
    # the client keeps them in a map, and gives them in any order
    assert sorted(host["Binds"]) == sorted([f"{mill.root}:{mill.root}", f"{easy}:/easy:ro"])
    assert host["Mounts"] == [
        {
            "Type": "bind",
            "Source": hard,
            "Target": "/hard: ,",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rslave"},
        }
    ]
    shared = (host["NetworkMode"], host["IpcMode"], host["PidMode"], host["AutoRemove"])
    assert shared == ("host", "host", "host", True)
    assert host["DeviceRequests"][0]["Count"] == -1
    assert created["User"] == "1000:100"
    assert {"MILL_TOKEN=the value", "NEMOTRON_STYLE_ATTEMPT=2"} <= set(created["Env"])
    assert created["Image"] == "img:1"
    assert created["Cmd"] == ["bash", str(plan.run_dir / "launch.sh")]
