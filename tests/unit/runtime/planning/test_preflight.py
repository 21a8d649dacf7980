"""What is found before a run is submitted."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.planning.inputs import Adoption
from nemotron_style.runtime.planning.preflight import check_plan, describe_user
from nemotron_style.runtime.run.plan import Plan, PlannedInput
from nemotron_style.runtime.store.digest import digest_tree


@pytest.fixture
def plan(mill: Any) -> Plan:
    """A plan that nothing stands in the way of."""
    return mill.compile("mill/grow").target.plan


def told(plan: Plan, **more: Any) -> list[str]:
    return [str(problem) for problem in check_plan(plan, **more)]


def change(plan: Plan, **changes: Any) -> Plan:
    site = {"site": plan.site | changes.pop("site")} if "site" in changes else {}
    resources = changes.pop("resources", plan.resources)
    return plan.model_copy(update={**changes, **site, "resources": resources})


def test_nothing_stands_in_the_way_of_a_sound_plan(mill: Any) -> None:
    before = mill.files()
    for run in mill.compile("mill/bake").runs:
        assert told(run.plan) == []
    assert mill.files() == before


def take(plan: Plan, digest: str) -> Plan:
    planned = PlannedInput(slot="input", kind="grain", source=digest)
    return change(plan, inputs=(planned,))


def test_an_adopted_input_must_be_in_the_store_whole(mill: Any, plan: Plan) -> None:
    sack = mill.write("elsewhere/sack.txt", "rye")
    artifact = mill.store.adopt(sack.parent, kind="grain", name="rye")
    taken = take(plan, artifact.digest)
    assert told(taken) == []
    (artifact.path / "sack.txt").unlink()
    (problem,) = told(taken)
    assert f"{artifact.path}: holds no files" in problem
    assert told(take(plan, "sha256:" + "0" * 64)) == [
        f"mill/grow: input: sha256:{'0' * 64} is not in the store; give the input again, by -i"
    ]


def test_what_will_be_adopted_must_be_readable(mill: Any, plan: Plan, monkeypatch: Any) -> None:
    sack = mill.write("elsewhere/sack.txt", "rye")
    digest = digest_tree(sack.parent)[0]
    adoption = Adoption(str(sack.parent), "grain", "rye", digest)
    assert told(take(plan, digest), adoptions=[adoption]) == []
    monkeypatch.setattr("os.access", lambda path, mode: path != sack)  # root may read anything
    assert told(take(plan, digest), adoptions=[adoption]) == [
        f"mill/grow: input: cannot be read; got {sack}"
    ]


def test_a_folder_that_this_user_cannot_write_is_told_before_the_run(
    mill: Any, plan: Plan, monkeypatch: Any
) -> None:
    assert main(["steps", "run", "mill/grow"]) == 0
    (output,) = [each for each in plan.outputs if each.slot == "sack"]
    claims = mill.store.layout.claims(output.name)
    real = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != claims and real(path, mode))
    (problem,) = told(plan)
    assert problem.startswith(f"store {mill.home}: {describe_user()} cannot write in {claims} (")
    assert "chmod -R g+rwX" in problem
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (problem,) = told(plan)
    assert "more (" in problem


def test_a_full_disk_is_told_with_both_numbers(mill: Any, plan: Plan) -> None:
    big = mill.write("big.bin", "")
    size = shutil.disk_usage(big).free + (10 << 30)
    with big.open("r+b") as file:
        file.truncate(size)  # a hole: it takes no room itself
    adoption = Adoption(str(big), "grain", "big", "sha256:" + "1" * 64)
    (problem,) = told(plan, adoptions=[adoption])
    assert problem.startswith(f"store {mill.home}: ")
    assert f"MB are free, and at least {-(-size // 10**6)} MB are needed" in problem


def test_more_processes_than_gpus_or_tasks_are_told_with_both_numbers(plan: Plan) -> None:
    many = {"nodes": 1, "processes": 8}
    crowded = change(plan, launch="torchrun", resources=many, executor="slurm")
    assert told(change(crowded, site={"gpus_per_node": 8, "tasks_per_node": 8})) == []
    assert told(change(crowded, site={"gpus_per_node": 0})) == []  # a machine without any
    (problem,) = told(change(crowded, site={"gpus_per_node": 4}))
    assert "gpus_per_node: the step starts 8 processes on each machine" in problem
    assert "and the profile has 4 GPUs there" in problem
    (problem,) = told(change(crowded, site={"tasks_per_node": 2}))
    assert "8 processes" in problem
    assert "2 tasks" in problem
    assert told(change(plan, resources=many, site={"gpus_per_node": 4})) == []  # one process


def test_more_machines_than_the_profile_offers_are_told_with_both_numbers(plan: Plan) -> None:
    wide = change(plan, launch="torchrun", resources={"nodes": 4, "processes": 1})
    assert told(change(wide, site={"nodes": 4})) == []
    (problem,) = told(change(wide, site={"nodes": 2}))
    assert "the step needs 4 machines" in problem
    assert "and the profile offers 2" in problem


def test_the_model_must_divide_the_processes(plan: Plan) -> None:
    def parallel(tensor: int, pipeline: int) -> dict[str, Any]:
        sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
        return {"model": sizes}

    world = change(plan, launch="torchrun", resources={"nodes": 2, "processes": 4})
    assert told(change(world, config=parallel(4, 2))) == []
    (problem,) = told(change(world, config=parallel(3, 2)))
    assert "8 processes (2 machines x 4)" in problem
    assert "over 6 (tensor_model_parallel_size 3 x pipeline_model_parallel_size 2)" in problem


def test_a_port_that_is_taken_is_told_where_it_would_be_used(plan: Plan) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        env = {"env": {"MASTER_PORT": port}}
        (problem,) = told(change(plan, **env))
        assert f"env.MASTER_PORT: port {port} is taken on this machine" in problem
        assert told(change(plan, executor="slurm", **env)) == []
    assert told(change(plan, **env)) == []
    (problem,) = told(change(plan, env={"MASTER_PORT": "many"}))
    assert "is not a port number; got many" in problem


def test_everything_is_told_at_once(plan: Plan) -> None:
    bad = change(
        take(plan, "sha256:" + "0" * 64),
        launch="torchrun",
        resources={"nodes": 4, "processes": 8},
        site={"gpus_per_node": 4, "nodes": 2},
        config={"tensor_model_parallel_size": 5},
    )
    assert len(told(bad)) == 4


def test_the_command_line_submits_nothing_when_something_stands_in_the_way(
    mill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        mill.write("env.toml", f"[mine]\nenv = {{ MASTER_PORT = {port} }}\n")
        assert main(["steps", "run", "mill/bake", "-r", "mine"]) == 2
        shown = capsys.readouterr()
        assert shown.err.count("is taken on this machine") == 1
        assert not (mill.home / "runs").exists()
    assert main(["steps", "run", "mill/bake", "-r", "mine"]) == 0
