"""Submitting, asking, following and cancelling, against a workspace in memory."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import StepFailed, UsageError
from nemotron_style.runtime.launch.base import JobHandle, handle_of
from nemotron_style.runtime.launch.lepton import launcher as lepton_launcher
from nemotron_style.runtime.launch.lepton import logs
from nemotron_style.runtime.launch.lepton import submit as submission
from nemotron_style.runtime.launch.lepton.client import (
    Absent,
    NodeGroup,
    Refused,
    RemoteJob,
    Taken,
    Unclear,
    Unreachable,
)
from nemotron_style.runtime.launch.lepton.launcher import LeptonLauncher
from nemotron_style.runtime.launch.status import read_status
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder, open_store
from nemotron_style.runtime.run.kept_run import note_outputs
from nemotron_style.runtime.run.snapshot import plan_snapshot

TOLD = {
    "Queueing": "PENDING",
    "Awaiting": "PENDING",
    "Starting": "PENDING",
    "Running": "RUNNING",
    "Stopping": "RUNNING",
    "Terminating": "RUNNING",
    "Deleting": "RUNNING",
    "Restarting": "REQUEUED",
    "PendingRetry": "REQUEUED",
    "Stopped": "CANCELLED",
    "Deleted": "CANCELLED",
    "Failed": "FAILED",
}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch):
    for module in (logs, lepton_launcher):
        monkeypatch.setattr(module, "SECONDS_BETWEEN_LOOKS", 0.001)
        monkeypatch.setattr(module, "SECONDS_BETWEEN_QUESTIONS", 0.0)
    monkeypatch.setattr(submission, "SECONDS_BETWEEN_LOOKS", 0.001)


@pytest.fixture
def plan(plan_of, tmp_path):
    return plan_of(store=str(tmp_path / "team" / "store"))


@pytest.fixture
def away(plan_of, tmp_path):
    """A plan whose results this machine does not see."""
    site = {"upload": f"file://{tmp_path}/bucket"}
    return plan_of(store="/mnt/shared/store", records=str(tmp_path / "records"), site=site)


def submit(launcher: LeptonLauncher, plan) -> tuple[JobHandle, Attempt]:
    number = RunFolder(plan.record_dir).next_attempt
    handle = launcher.submit(launcher.compile(plan, attempt=number))
    return handle, Attempt(handle.run_dir / "attempts" / str(handle.attempt))


def test_submitting_writes_what_was_shown_and_posts_it(launcher, workspace, plan):
    request = launcher.compile(plan)
    handle = launcher.submit(request)
    assert workspace.jobs == {request.name: request.body}
    for name, text in request.files.items():
        assert (plan.run_dir / name).read_text(encoding="utf-8") == text
    assert json.loads((plan.run_dir / "lepton.json").read_text()) == workspace.jobs[request.name]
    attempt = RunFolder(plan.run_dir).last_attempt
    assert handle == JobHandle("lepton", plan.run_dir, 1)
    assert attempt.job == {"executor": "lepton", "id": request.name, "workspace": workspace.name}
    assert (attempt.executor, attempt.record["state"]) == ("lepton", "PENDING")


def test_submitting_twice_takes_hold_of_the_first(launcher, workspace, plan):
    first, _ = submit(launcher, plan)
    again = launcher.submit(launcher.compile(plan, attempt=2))
    assert again == first
    assert [call for call, _ in workspace.calls] == ["create"]


def test_a_second_attempt_is_a_job_of_its_own(launcher, workspace, plan):
    _, attempt = submit(launcher, plan)
    attempt.close("FAILED")
    handle, _ = submit(launcher, plan)
    assert handle.attempt == 2
    assert len(workspace.jobs) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Refused("the job: HTTP 400 from host: no quota"), "Lepton refused it: the job: HTTP 400"),
        (Unreachable("the job: nobody answers at host"), "nobody answers at host; nothing was"),
        (Unclear("the job: HTTP 500 from host"), "HTTP 500 from host; there is no such job now"),
        (Unclear("the job: the connection broke"), "the connection broke; there is no such job"),
    ],
)
def test_what_fails_leaves_nothing_half_done(launcher, workspace, plan, error, told):
    workspace.raising["create"] = [error]
    with pytest.raises(StepFailed, match=told):
        submit(launcher, plan)
    attempt = RunFolder(plan.run_dir).last_attempt
    assert attempt.record["state"] == "FAILED"
    assert told in attempt.record["error"]
    assert not attempt.take_ownership()  # a worker that came up all the same would give way
    assert read_status(RunFolder(plan.run_dir)).state == "FAILED"
    handle, _ = submit(launcher, plan)  # and the next same command works
    assert handle.attempt == 2


def test_an_answer_that_was_lost_is_asked_for(launcher, workspace, plan):
    workspace.loses_answer = True
    workspace.raising["create"] = [Unclear("the job: the connection broke")]
    workspace.raising["find"] = [Unclear("HTTP 502"), None]
    handle, attempt = submit(launcher, plan)
    assert attempt.job["id"] in workspace.jobs
    assert launcher.state(handle).state == "PENDING"


def test_what_stays_unknown_is_said_to_be(launcher, workspace, plan):
    workspace.raising["create"] = [Unclear("the job: the connection broke")]
    workspace.raising["find"] = [Unreachable("nobody")] * 3
    with pytest.raises(StepFailed, match=r"whether the job was made is not known.*lep job remove"):
        submit(launcher, plan)
    assert not RunFolder(plan.run_dir).last_attempt.take_ownership()


def test_a_job_of_our_name_that_is_another_is_left_alone(launcher, workspace, plan):
    request = launcher.compile(plan)
    strange = {"metadata": {"name": request.name, "labels": {}}}
    workspace.jobs[request.name] = strange
    with pytest.raises(StepFailed, match="has a job of this name already, and it is another"):
        launcher.submit(request)
    assert workspace.jobs[request.name] is strange


def test_a_job_of_our_name_and_body_that_is_old_is_left_alone(launcher, workspace, plan):
    request = launcher.compile(plan)
    workspace.jobs[request.name] = request.body
    workspace.created = time.time() - 3600
    with pytest.raises(StepFailed, match="it is another one"):
        launcher.submit(request)


def test_a_post_that_was_sent_twice_on_the_way_is_ours(launcher, workspace, plan):
    workspace.loses_answer = True
    workspace.raising["create"] = [Taken("exists")]
    workspace.created = time.time()
    handle, _ = submit(launcher, plan)
    assert launcher.state(handle).state == "PENDING"


def test_waiting_for_others_is_refused_before_anything(launcher, workspace, plan):
    before = JobHandle("lepton", Path("/x/runs/data-toy-1"), 1)
    with pytest.raises(UsageError, match=r"needs data-toy-1 first.*-r cloud"):
        launcher.submit(launcher.compile(plan), after=[before])
    assert workspace.calls == []
    assert not plan.run_dir.exists()


def test_without_the_sdk_nothing_is_claimed(plan):
    def connect():
        raise UsageError("profiles with executor = 'lepton' need the Lepton SDK")

    launcher = LeptonLauncher(connect=connect)
    with pytest.raises(UsageError, match="need the Lepton SDK"):
        launcher.submit(launcher.compile(plan))
    assert not plan.run_dir.exists()
    assert [str(problem) for problem in launcher.check(plan)] == [
        "profile cloud: profiles with executor = 'lepton' need the Lepton SDK"
    ]


def test_upload_that_fails_posts_nothing(launcher, workspace, plan_of, tmp_path):
    (tmp_path / "bucket").write_text("in the way")
    site = {"upload": f"file://{tmp_path}/bucket"}
    plan = plan_of(records=str(tmp_path / "records"), site=site)
    with pytest.raises(StepFailed, match="the code cannot be uploaded"):
        submit(launcher, plan)
    assert workspace.calls == []
    assert RunFolder(plan.record_dir).last_attempt.record["state"] == "FAILED"


def test_uploading_puts_the_archive_before_the_job(launcher, workspace, away, tmp_path):
    handle, _ = submit(launcher, away)
    name = next(iter(workspace.jobs))
    command = workspace.jobs[name]["spec"]["container"]["command"][2]
    archive = next((tmp_path / "bucket").iterdir())
    assert archive.name in command
    assert handle.run_dir == away.record_dir


def test_of_an_uploaded_job_a_bucket_says_whether_it_made_its_outputs(launcher, workspace, away):
    plan = away.model_copy(update={"root": f"memory://{uuid.uuid4().hex}/team"})
    handle, _ = submit(launcher, plan)
    workspace.state = "Completed"
    told = launcher.state(handle)
    assert (told.state, told.reason) == ("FAILED", "its pods ended well, and left no outputs")
    note_outputs(plan, open_store(plan), {"outputs": {}, "figures": {}})
    assert launcher.state(handle).state == "COMPLETED"


@pytest.mark.parametrize(("said", "state"), TOLD.items())
def test_words_of_lepton(launcher, workspace, plan, said, state):
    handle, _ = submit(launcher, plan)
    workspace.state = said
    assert launcher.state(handle).state == state


def test_state_of_a_word_that_nobody_knows_is_the_last_known(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    attempt.update(state="RUNNING")
    workspace.state = "UNK"
    told = launcher.state(handle)
    assert (told.state, told.reason) == ("RUNNING", "Lepton calls it 'UNK'")


@pytest.mark.parametrize(
    "error", [Unreachable("nobody answers"), Unclear("HTTP 503"), Refused("no")]
)
def test_a_network_that_is_down_loses_nothing(launcher, workspace, plan, error):
    handle, attempt = submit(launcher, plan)
    attempt.update(state="RUNNING")
    workspace.raising["find"] = [error]
    told = launcher.state(handle)
    assert told.state == "RUNNING"
    assert str(error) in told.reason
    assert not told.is_final


def test_a_job_that_is_gone_is_lost(launcher, workspace, plan):
    handle, _ = submit(launcher, plan)
    workspace.jobs.clear()
    assert launcher.state(handle).state == "LOST"


def test_a_job_on_its_way_is_pending_and_one_that_never_came_is_lost(launcher, workspace, plan):
    RunFolder(plan.run_dir).reserve(plan)
    attempt = RunFolder(plan.run_dir).claim_attempt(1, executor="lepton")
    handle = JobHandle("lepton", plan.run_dir, 1)
    assert launcher.state(handle).state == "PENDING"
    attempt.update(started=time.time() - 3600, launcher={"pid": 1, "ticks": 0, "boot": "other"})
    assert launcher.state(handle).state == "PENDING"  # another machine may be at it still
    attempt.update(launcher={})
    assert launcher.state(handle).state == "LOST"


def test_our_own_files_come_first(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    attempt.close("FAILED", exit_code=3, error="the mill stone broke")
    workspace.raising["find"] = [AssertionError("asked without need")]
    told = launcher.state(handle)
    assert (told.state, told.exit_code, told.reason) == ("FAILED", 3, "the mill stone broke")


def test_outputs_are_the_best_witness(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    attempt.record_cancel()
    (plan.run_dir / "outputs.json").write_text("{}")
    assert launcher.state(handle).state == "COMPLETED"


def test_completed_without_outputs_is_no_success(launcher, workspace, plan, monkeypatch):
    handle, _ = submit(launcher, plan)
    workspace.state = "Completed"
    told = launcher.state(handle)
    assert (told.state, told.reason) == ("FAILED", "its pods ended well, and left no outputs")
    fresh = RemoteJob("x", "Completed", ended=time.time())
    monkeypatch.setattr(workspace, "find", lambda name: fresh)
    assert launcher.state(handle).state == "RUNNING"  # a network disk may be behind


def test_completed_where_nothing_is_seen_is_believed(launcher, workspace, away):
    handle, _ = submit(launcher, away)
    workspace.state = "Completed"
    assert launcher.state(handle).state == "COMPLETED"


@pytest.mark.parametrize(
    ("counts", "state"),
    [((4, 0), "COMPLETED"), ((3, 1), "FAILED"), ((0, 0), "LOST")],
)
def test_an_archived_job_is_judged_by_its_pods(
    launcher, workspace, away, monkeypatch, counts, state
):
    handle, _ = submit(launcher, away)
    succeeded, failed = counts
    job = RemoteJob("x", "Archived", succeeded=succeeded, failed=failed, wanted=4)
    monkeypatch.setattr(workspace, "find", lambda name: job)
    assert launcher.state(handle).state == state


def test_the_culprit_is_named_and_not_those_it_took_along(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    for node, code in enumerate((143, 143, 42, 137)):
        (attempt.path / f"exit-{node}").write_text(f"{code}\n")
    workspace.state = "Failed"
    told = launcher.state(handle)
    assert (told.state, told.exit_code, told.reason) == (
        "FAILED",
        42,
        "node 2 ended with exit code 42",
    )


def test_cancel_stops_and_is_remembered(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    launcher.cancel(handle)
    assert workspace.calls[-1] == ("stop", attempt.job["id"])
    assert (attempt.path / "stop").is_file()
    assert attempt.is_cancelled
    workspace.state = "Failed"  # the worker's own exit code came first
    assert launcher.state(handle).state == "CANCELLED"


def test_cancel_by_force_deletes(launcher, workspace, plan):
    handle, _ = submit(launcher, plan)
    launcher.cancel(handle, force=True)
    assert workspace.jobs == {}
    assert launcher.state(handle).state == "CANCELLED"
    launcher.cancel(handle, force=True)  # nothing is left to do


def test_cancel_that_does_not_get_through_says_so_and_is_kept(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    workspace.raising["stop"] = [Unreachable("nobody answers at host")]
    with pytest.raises(StepFailed, match="nobody answers at host; the wish is written down"):
        launcher.cancel(handle)
    assert attempt.is_cancelled


def test_cancel_of_what_has_ended_does_nothing(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    attempt.close("FAILED", exit_code=1)
    launcher.cancel(handle)
    assert [call for call, _ in workspace.calls] == ["create"]
    assert not attempt.is_cancelled


def test_log_of_a_shared_folder_is_followed_to_its_end(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    workspace.state = "Running"
    texts = launcher.logs(handle)
    assert next(texts) == ""
    with open(attempt.log, "ab") as log:
        log.write(b"ein St" + b"\xc3\xbc"[:1])
        log.flush()
        assert next(texts) == "ein St"
        log.write(b"\xc3\xbc"[1:] + b"ck\n")
        log.flush()
        assert next(texts) == "ück\n"
        assert next(texts) == ""
        log.write(b"last\n")
    attempt.close("COMPLETED", exit_code=0)
    assert "".join(texts) == "last\n"


def test_log_of_another_node_may_come_late(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    workspace.state = "Running"
    texts = launcher.logs(handle, node=2)
    assert [next(texts), next(texts)] == ["", ""]
    attempt.log_of(2).write_text("here\n")
    assert next(texts) == "here\n"
    attempt.close("FAILED")
    assert "".join(texts) == ""


def test_log_that_is_not_seen_is_asked_for_live(launcher, workspace, away):
    handle, attempt = submit(launcher, away)
    name = attempt.job["id"]
    workspace.live = {f"{name}-1-bbb": ["other"], f"{name}-0-aaa": ["one\n", "two\n"]}
    workspace.state = "Completed"
    assert "".join(launcher.logs(handle)) == "one\ntwo\n"


def test_log_whose_connection_breaks_goes_on_where_it_was(launcher, workspace, away):
    handle, attempt = submit(launcher, away)
    replica = f"{attempt.job['id']}-0-aaa"
    workspace.live = {replica: ["one\n", "tw"]}
    workspace.state = "Running"
    texts = (text for text in launcher.logs(handle) if text)
    assert [next(texts), next(texts)] == ["one\n", "tw"]
    workspace.live = {replica: ["one\ntwo\n", "three\n"]}
    workspace.state = "Completed"
    assert "".join(texts) == "o\nthree\n"


def test_log_of_pods_that_are_gone_is_the_stored_one(launcher, workspace, away):
    handle, _ = submit(launcher, away)
    workspace.state, workspace.kept = "Failed", "stored\n"
    assert "".join(launcher.logs(handle)) == "stored\n"
    workspace.raising["recall"] = [Refused("HTTP 403")]
    assert "".join(launcher.logs(handle)) == "no log: HTTP 403\n"


def test_check_finds_nothing_where_all_is_there(launcher, plan_of, tmp_path):
    plan = plan_of(secrets=("HF_TOKEN",), site={"node_reservation": "res-1"})
    assert list(launcher.check(plan)) == []


def test_check_says_everything_at_once(launcher, workspace, plan_of):
    mount = {"source": "/team", "target": "/mnt/shared", "volume": "node-nfs:other"}
    site = {"resource_shape": "gpu.8xh100-80bg", "node_reservation": "res-2"}
    plan = plan_of(secrets=("HF_TOKE",), mounts=(mount,), site=site)
    told = {problem.key: str(problem) for problem in launcher.check(plan)}
    assert set(told) == {"resource_shape", "secrets", "node_reservation", "mounts[0].from"}
    assert "did you mean 'gpu.8xh100-80gb'?" in told["resource_shape"]
    assert "did you mean 'HF_TOKEN'?" in told["secrets"]
    assert "allowed: res-1" in told["node_reservation"]
    assert "allowed: node-nfs:lustre" in told["mounts[0].from"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("h100-pool", "its id is needed; got 'h100-pool'; allowed: ng-1 (h100-pool)"),
        ("h100-pol", "no such node group; got 'h100-pol'; allowed: ng-1 (h100-pool); did you mean"),
    ],
)
def test_a_node_group_is_given_by_its_id(launcher, plan_of, given, told):
    (problem,) = launcher.check(plan_of(site={"node_group": given}))
    assert told in str(problem)
    if given == "h100-pool":
        assert problem.fix == 'write node_group = "ng-1"'


def test_what_may_not_be_asked_is_no_hindrance(launcher, workspace, plan_of):
    workspace.raising["shapes"] = [Refused("HTTP 403")]
    workspace.groups = (NodeGroup("ng-1", "h100-pool", None),)
    assert list(launcher.check(plan_of())) == []


def test_a_workspace_that_is_not_reached_is_one_problem(launcher, workspace, plan_of):
    workspace.raising["node_groups"] = [Unreachable("nobody answers at host")]
    (problem,) = launcher.check(plan_of())
    assert str(problem) == "profile cloud: Lepton was not reached: nobody answers at host"


def test_a_detached_job_needs_its_inputs_to_be_there(launcher, plan, tmp_path):
    source = {"slot": "data", "kind": "stone", "source": "run:data-toy-0123456789ab/rows"}
    planned = type(plan).model_validate({**plan.model_dump(), "inputs": (source,)})
    assert list(launcher.check(planned)) == []
    (problem,) = launcher.check(planned.model_copy(update={"detached": True}))
    assert "is not made yet, and Lepton cannot hold a job back for it" in str(problem)


def test_the_projects_root_is_not_in_a_pod(launcher, plan_of, tmp_path, monkeypatch):
    (tmp_path / "env.toml").touch()
    monkeypatch.chdir(tmp_path)
    (problem,) = launcher.check(plan_of(workdir=str(tmp_path)))
    assert problem.key == "workdir"
    mounted = {"source": "/x", "target": str(tmp_path), "volume": "node-nfs:lustre"}
    first = {"source": "/team", "target": "/mnt/shared", "volume": "node-nfs:lustre"}
    assert list(launcher.check(plan_of(workdir=str(tmp_path), mounts=(first, mounted)))) == []


def test_a_disk_with_another_name_in_the_pod_gets_the_code_too(launcher, plan_of, tmp_path):
    entrypoint = "nemotron_style.steps.sft.chat.recipe:run"
    config = "nemotron_style.steps.sft.chat.config:Config"
    store, records = Path("/mnt/shared/store"), tmp_path / "lustre"
    snapshot = plan_snapshot(store, entrypoint)
    plan = plan_of(
        snapshot=snapshot, records=str(records), entrypoint=entrypoint, config_class=config
    )
    handle, _ = submit(launcher, plan)
    assert handle.run_dir == records / "runs" / plan.run_id
    code = records / Path(snapshot.path).relative_to(store)
    assert (code / "nemotron_style/runtime/worker/main.py").is_file()
    assert str(store) in (handle.run_dir / "launch.sh").read_text()


def test_pods_without_a_number_in_their_names_go_by_their_order(launcher, workspace, away):
    handle, _ = submit(launcher, away)
    workspace.live = {"pod-b": ["second"], "pod-a": ["first"]}
    workspace.state = "Completed"
    assert "".join(launcher.logs(handle, node=1)) == "second"
    workspace.raising["replicas"] = [Unclear("HTTP 500")]
    assert "".join(launcher.logs(handle, node=0)) == ""


def test_a_rank_that_failed_tells_more_than_an_exit_code(launcher, workspace, plan):
    handle, attempt = submit(launcher, plan)
    (attempt.path / "failure-3.json").write_text('{"error": "no memory", "exit_code": 1}')
    workspace.state = "Failed"
    told = launcher.state(handle)
    assert (told.state, told.exit_code, told.reason) == ("FAILED", 1, "no memory")


def test_a_failure_without_any_word_points_at_the_log(launcher, workspace, plan):
    handle, _ = submit(launcher, plan)
    workspace.state = "Failed"
    assert launcher.state(handle).reason == "Lepton says Failed; the log may tell why"


def test_another_workspace_is_not_believed_and_not_told(launcher, workspace, plan):
    handle, _ = submit(launcher, plan)
    other = type(workspace)(name="other at lepton", state="Failed")
    elsewhere = LeptonLauncher(connect=lambda: other)
    state = elsewhere.state(handle)
    assert (state.state, state.stale) == ("PENDING", True), "an unknown job there is not LOST"
    assert "is in workspace ws at lepton, and you are logged in to other at lepton" in state.reason
    with pytest.raises(UsageError, match="lep login"):
        elsewhere.cancel(handle)
    assert other.calls == []
    assert (handle.run_dir / "attempts/1/stop").is_file(), "a worker that sees the folder stops"
    launcher.cancel(handle)
    assert workspace.calls[-1][0] == "stop"


def test_a_post_of_which_no_word_came_back_is_not_lost_elsewhere(launcher, workspace, plan):
    workspace.raising["create"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        submit(launcher, plan)
    attempt = RunFolder(plan.run_dir).last_attempt
    attempt.update(started=1, launcher={})
    elsewhere = LeptonLauncher(connect=lambda: type(workspace)(name="other at lepton"))
    assert elsewhere.state(handle_of(attempt)).state == "PENDING"
    assert launcher.state(handle_of(attempt)).state == "LOST"


def test_a_workspace_that_is_down_is_asked_once_for_all_runs(
    launcher, workspace, plan_of, tmp_path
):
    plans = [plan_of(store=str(tmp_path / f"mnt{n}" / "store")) for n in range(3)]
    handles = [submit(launcher, plan)[0] for plan in plans]
    workspace.calls.clear()
    workspace.raising["find"] = [Unreachable("nobody answers")] * 3
    states = launcher.states(handles)
    assert [state.stale for state in states] == [True] * 3
    assert len({state.reason for state in states}) == 1
    assert [call for call, _ in workspace.calls] == ["find"]


def test_cancelling_what_is_gone_is_no_error(launcher, workspace, plan):
    handle, _ = submit(launcher, plan)
    workspace.jobs.clear()
    workspace.raising["stop"] = [Absent("gone")]
    launcher.cancel(handle)
    assert launcher.state(handle).state == "CANCELLED"
